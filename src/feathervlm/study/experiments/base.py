"""What an experiment is: a question, the runs that it needs, its numbers and figures, and what they say of the paper.

Every finding carries its rule in words beside the code that applies it; both are written before a run.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.study.aggregates import Results
from feathervlm.study.plan import Plan

Verdict = Literal["reproduced", "partly", "not"]


@dataclass(frozen=True, eq=False)
class Finding:
    """A claim of the paper and what became of it.

    Attributes:
        id: short and lasting, so that studies of other training seeds can be laid beside this one.
        claim: of the paper.
        paper: its own numbers, in words.
        rule: when it counts as reproduced, partly reproduced, or not.
        measured: the numbers that the rule reads, by what they are.
        verdict: of the rule.
    """

    id: str
    claim: str
    paper: str
    rule: str
    measured: dict[str, Estimate]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
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
    """The verdict: `reproduced` if that holds, else `partly` if that does."""
    return "reproduced" if reproduced else "partly" if partly else "not"


@dataclass(frozen=True)
class Table:
    """A table for the report; an `Estimate` in it is shown with its interval."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Estimate]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        rows = [[cell.to_dict() if isinstance(cell, Estimate) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an experiment found."""

    tables: list[Table]
    findings: list[Finding]
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    """For each file name (without ending) a figure and its caption."""
    notes: list[str] = field(default_factory=list)


class Experiment(ABC):
    """Base of all experiments.

    Class attributes:
        name: of its files.
        title: heading in the report.
        question: that it answers.
        source: the figure or table of the paper.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def methods(self, plan: Plan) -> list[str]:
        """Specs of the methods that it needs, or `ledger.UNPRUNED`."""

    @abstractmethod
    def evaluate(self, plan: Plan, results: Results) -> Outcome:
        """Numbers, findings and figures from the answers."""
