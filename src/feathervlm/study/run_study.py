"""The study from beginning to end: looks at the model, answers all questions, writes results as they come.

An experiment is evaluated and written as soon as its last answer is there. Knows no experiment by name, and nothing of
the terminal.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feathervlm.evaluation import runner
from feathervlm.evaluation.preflight import check
from feathervlm.evaluation.runner import Work, by_method, open_work
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks.base import CHUNK, QuestionSet, Task
from feathervlm.inference.loading import describe
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.study import report
from feathervlm.study.aggregates import Results
from feathervlm.study.experiments import EXPERIMENTS, Experiment
from feathervlm.study.experiments.base import Outcome
from feathervlm.study.figures import save, style
from feathervlm.study.model_probe import Look, look_at
from feathervlm.study.plan import Plan
from feathervlm.utils import files as utils_files
from feathervlm.utils.provenance import command, commit, machine, versions
from feathervlm.utils.quiet import quiet

Told = Callable[[str, int, int], None]
"""Told what is being done, how many answers there are, and how many there will be."""


@dataclass(frozen=True)
class Request:
    """What to study.

    Attributes:
        spec: who answers.
        task: what is asked.
        out: where everything is written.
        quick: fewer layers and budgets.
        processes: how many work side by side, one thread each; None: one per core, and 1 on an accelerator.
        seed: of the bootstrap and of the pictures shown.
        beside: folders of other studies, such as of other training seeds, whose numbers are shown beside these.
        experiments: to run.
    """

    spec: ModelSpec
    task: Task
    out: Path
    quick: bool = False
    processes: int | None = None
    seed: int = 0
    beside: tuple[Path, ...] = ()
    experiments: tuple[Experiment, ...] = EXPERIMENTS


@dataclass(eq=False)
class Study:
    """What came out.

    Attributes:
        request: what was asked for.
        about: the model, the data, versions and settings.
        experiments: those that are done, as they are written to their files.
        files: what was written, the reports last.
    """

    request: Request
    about: dict[str, Any]
    experiments: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Of all experiments, in order."""
        return [finding for experiment in self.experiments for finding in experiment["findings"]]


def run(request: Request, told: Told = lambda what, done, total: None) -> Study:
    """Run the experiments; what is in `out` already is not asked again.

    Args:
        request: what to study.
        told: is told what happens.

    Raises:
        PruningError: on whatever the user can put right.
    """
    others = [report.read_findings(folder) for folder in request.beside]
    questions = QuestionSet(request.task, request.task.questions(None))
    with quiet():
        told("looking at the model", 0, 0)
        model = describe(check(request.spec, [questions], []))
        look = look_at(request.spec, questions)
        plan = Plan(look.depth, look.shape, request.quick)
        needed = {experiment.name: experiment.methods(plan) for experiment in request.experiments}
        methods = list(dict.fromkeys(method for found in needed.values() for method in found))
        check(request.spec, [questions], methods)
        about = _about(request, questions, model, plan)
        key = {"model": model, "data": questions.fingerprint, "chunk": CHUNK}
        begun = {"commit": commit(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        store = AnswerStore(request.out / "answers", key, begun)
        about["begun"] = store.begun
        done = Study(request, about)
        _Progress(request, questions, plan, look, store, done, needed, told).run(methods)
        done.experiments.sort(key=lambda one: [e.name for e in request.experiments].index(one["name"]))
        done.files += report.write(done.request.out, done.about, done.experiments, others)
    return done


class _Progress:
    """Counts answers, and evaluates each experiment once all of its are there."""

    def __init__(
        self,
        request: Request,
        questions: QuestionSet,
        plan: Plan,
        look: Look,
        store: AnswerStore,
        done: Study,
        needed: dict[str, list[str]],
        told: Told,
    ) -> None:
        self.request, self.questions, self.plan, self.look, self.store = request, questions, plan, look, store
        self.done, self.told = done, told
        self.waiting = {experiment: needed[experiment.name] for experiment in request.experiments}
        self.answered: Counter[str] = Counter()
        self.records: dict[str, dict[int, Sample]] = {}

    def run(self, methods: list[str]) -> None:
        asked = len(self.questions.questions)
        total = len(methods) * asked

        def step(method: str, more: int) -> None:
            self.answered[method] += more
            self.told(method, self.answered.total(), total)
            for experiment in list(self.waiting):
                if all(self.answered[spec] == asked for spec in self.waiting[experiment]):
                    self._evaluate(experiment)

        request = self.request
        work = open_work([self.questions], methods, self.store)
        for method in methods:
            step(method, asked - sum(len(piece.chunk) for piece in work if method in piece.methods))

        def stored(piece: Work) -> None:
            step(piece.methods[0], len(piece.chunk))

        processes = self.done.about["processes"]
        runner.run(
            request.spec, [self.questions], by_method(work, methods), self.store, processes=processes, done=stored
        )
        results = self._results(methods)
        path = request.out / "runs.json"
        utils_files.write_json(path, {"about": self.done.about, "runs": [results.row(method) for method in methods]})
        self.done.files.append(path)

    def _evaluate(self, experiment: Experiment) -> None:
        methods = self.waiting.pop(experiment)
        results = self._results(methods)
        with style():
            outcome = experiment.evaluate(self.plan, results)
            figures = self._draw(experiment, outcome)
        document = {
            "name": experiment.name,
            "title": experiment.title,
            "question": experiment.question,
            "source": experiment.source,
            "methods": methods,
            "tables": [table.to_dict() for table in outcome.tables],
            "findings": [finding.to_dict() for finding in outcome.findings],
            "figures": figures,
            "notes": outcome.notes,
        }
        path = self.request.out / f"{experiment.name}.json"
        utils_files.write_json(path, {**document, "about": self.done.about})
        self.done.files.append(path)
        self.done.experiments.append(document)

    def _results(self, methods: list[str]) -> Results:
        for method in methods:
            if method not in self.records:
                self.records[method] = self.store.read(self.questions, method)
        return Results(
            self.questions.kinds,
            self.questions.splits,
            {method: self.records[method] for method in methods},
            self.questions.item,
            self.look.prior,
            self.look.no_prior,
            self.request.seed,
        )

    def _draw(self, experiment: Experiment, outcome: Outcome) -> list[dict[str, str]]:
        folder = self.request.out / "figures"
        utils_files.make_directory(folder, "--out")
        figures = []
        for name, (figure, caption) in outcome.figures.items():
            for ending in ("png", "svg"):
                path = folder / f"{experiment.name}-{name}.{ending}"
                utils_files.write_whole(path, lambda draft, figure=figure: save(figure, draft))  # type: ignore[misc]  # lambda
                self.done.files.append(path)
            figures.append({"file": f"{experiment.name}-{name}", "caption": caption})
        return figures


def _about(request: Request, questions: QuestionSet, model: dict[str, Any], plan: Plan) -> dict[str, Any]:
    counts = Counter(questions.splits)
    return {
        "model": model,
        "data": {"name": questions.name, "fingerprint": questions.fingerprint, "questions": dict(counts)},
        "grid": plan.shape,
        "depth": plan.depth,
        "quick": request.quick,
        "seed": request.seed,
        "processes": request.processes or ((os.cpu_count() or 1) if model["device"] == "cpu" else 1),
        "command": command(),
        "versions": versions(),
        "machine": machine(),
    }
