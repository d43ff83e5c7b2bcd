"""Base of experiments: a question, the methods that it needs, and the numbers, figures and claims that it evaluates.

Every claim states its rule in words beside the code that applies it; both are written before a run.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.plan import Plan

Verdict = Literal["reproduced", "partly", "not"]


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim of the paper and whether it is reproduced.

    Attributes:
        id: Stable identifier, by which studies of different models are compared.
        claim: Claim of the paper.
        paper: Numbers of the paper, in words.
        rule: When the claim counts as reproduced, partly reproduced, or not reproduced.
        measured: Numbers that the rule reads, by name.
        verdict: Verdict of the rule.
    """

    id: str
    claim: str
    paper: str
    rule: str
    measured: dict[str, Estimate]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        measured = {name: estimate.to_dict() for name, estimate in self.measured.items()}
        return {
            "id": self.id,
            "claim": self.claim,
            "paper": self.paper,
            "rule": self.rule,
            "measured": measured,
            "verdict": self.verdict,
        }


def judge(reproduced: bool, partly: bool) -> Verdict:
    """Return the verdict from the conditions of `reproduced` and of `partly`."""
    return "reproduced" if reproduced else "partly" if partly else "not"


@dataclass(frozen=True)
class Table:
    """A table of the report, which shows an `Estimate` with its interval."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        rows = [[cell.to_dict() if isinstance(cell, Estimate) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows}


@dataclass(frozen=True, eq=False)
class ExperimentResult:
    """The result of an experiment.

    Attributes:
        tables: Tables of the report.
        claims: Claims of the paper that it tests.
        figures: Figure and caption for each file name (without suffix).
        notes: Sentences that the report adds.
    """

    tables: list[Table]
    claims: list[Claim]
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Experiment(ABC):
    """Base of all experiments.

    Class attributes:
        name: Name of its files.
        title: Heading in the report.
        question: Question that it answers.
        source: Figure or table of the paper.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def methods(self, plan: Plan) -> list[str]:
        """Return the specs of the methods that it needs, `UNPRUNED` among them."""

    @abstractmethod
    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        """Return tables, claims and figures from the answers."""
