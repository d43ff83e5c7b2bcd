"""A study from beginning to end: probe the model, answer all questions, evaluate experiments, write the report.

An experiment is evaluated and written as soon as its last answer is stored.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.evaluation import runner
from feathervlm.evaluation.preflight import check
from feathervlm.evaluation.runner import Work, by_method, open_work
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks.base import CHUNK
from feathervlm.inference.loading import describe
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.study import report
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments import EXPERIMENTS, Experiment
from feathervlm.study.experiments.base import ExperimentResult
from feathervlm.study.model_probe import ModelProbe, probe_model
from feathervlm.study.plan import Plan
from feathervlm.study.questions import StudyQuestions
from feathervlm.utils import files as utils_files
from feathervlm.utils.plotting import save, style
from feathervlm.utils.progress import Progress
from feathervlm.utils.provenance import command, commit, machine, versions
from feathervlm.utils.quiet import quiet


@dataclass(frozen=True)
class StudyRequest:
    """What to study.

    Args:
        spec: Which model answers.
        questions: Questions that are asked.
        out: Directory that everything is written to.
        quick: Whether to try fewer layers and budgets.
        processes: Number of processes with one thread each. The default is one per core, and 1 on an accelerator.
        seed: Seed of the bootstrap and of the pictures in the report.
        beside: Directories of other studies, such as of other training seeds, whose numbers the report shows.
        experiments: Experiments to run.
        report_only: Whether to refuse a study whose answers are not all stored, instead of asking for them.
    """

    spec: ModelSpec
    questions: StudyQuestions
    out: Path
    quick: bool = False
    processes: int | None = None
    seed: int = 0
    beside: tuple[Path, ...] = ()
    experiments: tuple[Experiment, ...] = EXPERIMENTS
    report_only: bool = False


@dataclass(eq=False)
class Study:
    """The result of a study.

    Attributes:
        request: What was asked for.
        about: Model, data, versions and settings.
        experiments: Documents of the experiments, as in their files.
        files: Paths of the files that were written, the reports last.
    """

    request: StudyRequest
    about: dict[str, Any]
    experiments: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings of all experiments, in order."""
        return [finding for experiment in self.experiments for finding in experiment["findings"]]


def run(request: StudyRequest, progress: Progress = lambda what, done, total: None) -> Study:
    """Run the experiments; answers that `out` holds already are not asked for again.

    Args:
        request: What to study.
        progress: Callback, called with the current step, the number of answers, and their total (0 if not known yet).

    Raises:
        PruningError: The request cannot be met; the message says what to change.
    """
    others = [report.read_findings(folder) for folder in request.beside]
    questions = request.questions
    with quiet():
        progress("probing the model", 0, 0)
        model = describe(check(request.spec, questions.sets, []))
        progress("reading the pictures", 0, 0)
        for one in questions.sets:
            one.task.check(one.questions)
        data = questions.describe()
        hashes = {one.name: one.fingerprints for one in questions.sets}
        key = {"model": model, "chunk": CHUNK} | {
            kind: {name: own[kind] for name, own in hashes.items()} for kind in ("questions", "pictures")
        }
        begun = {"commit": commit(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        store = AnswerStore(request.out / "answers", key, begun)
        path = request.out / "probe.json"
        known = ModelProbe.read(path, key)
        if known is None and request.report_only:
            raise PruningError(
                f"All answers are missing in {request.out / 'answers'}; leave --report-only out to ask for them."
            )
        if known is None:
            everything = [Work(part, chunk, ()) for part, one in enumerate(questions.sets) for chunk in one.chunks]
            runner.check_pictures(questions.sets, everything, "symmetric", progress)
        probe = known or probe_model(request.spec, questions)
        plan = Plan(probe.depth, probe.shape, request.quick)
        needed = {experiment.name: experiment.methods(plan) for experiment in request.experiments}
        methods = list(dict.fromkeys(method for specs in needed.values() for method in specs))
        check(request.spec, questions.sets, methods)
        if known is None:
            probe.write(path, key)
        study = Study(request, _about(request, data, model, plan) | {"begun": store.begun})
        _Evaluator(study, plan, probe, store, needed, progress).run(methods, checked=known is None)
        order = [experiment.name for experiment in request.experiments]
        study.experiments.sort(key=lambda document: order.index(document["name"]))
        study.files += report.write(request.out, study.about, study.experiments, others)
    return study


class _Evaluator:
    """Asks for answers, and evaluates each experiment as soon as all its answers are stored."""

    def __init__(
        self,
        study: Study,
        plan: Plan,
        probe: ModelProbe,
        store: AnswerStore,
        needed: dict[str, list[str]],
        progress: Progress,
    ) -> None:
        self.study, self.plan, self.probe, self.store, self.progress = study, plan, probe, store, progress
        self.request, self.questions = study.request, study.request.questions
        self.waiting = {experiment: needed[experiment.name] for experiment in self.request.experiments}
        self.answered: Counter[str] = Counter()
        self.samples: dict[str, dict[int, Sample]] = {}

    def run(self, methods: list[str], *, checked: bool) -> None:
        sets, total = self.questions.sets, len(self.questions.tasks)
        work = open_work(sets, methods, self.store)
        missing: Counter[str] = Counter()
        for piece in work:
            missing.update(dict.fromkeys(piece.methods, len(piece.chunk)))
        if self.request.report_only and missing:
            raise PruningError(
                f"{missing.total()} of {total * len(methods)} answers are missing in {self.request.out / 'answers'}; "
                "leave --report-only out to ask for them."
            )
        if not checked:
            runner.check_pictures(sets, work, "symmetric", self.progress)
        for method in methods:
            self._count(method, total - missing[method], total * len(methods))

        def stored(piece: Work) -> None:
            self._count(piece.methods[0], len(piece.chunk), total * len(methods))

        processes = self.study.about["processes"]
        runner.run(self.request.spec, sets, by_method(work, methods), self.store, processes=processes, done=stored)
        results = self._results(methods)
        path = self.request.out / "runs.json"
        rows = [results.row(method) for method in methods]
        utils_files.write_json(path, {"about": self.study.about, "runs": rows})
        self.study.files.append(path)

    def _count(self, method: str, more: int, total: int) -> None:
        self.answered[method] += more
        self.progress(method, self.answered.total(), total)
        for experiment, methods in list(self.waiting.items()):
            if all(self.answered[spec] == len(self.questions.tasks) for spec in methods):
                del self.waiting[experiment]
                self._evaluate(experiment, methods)

    def _evaluate(self, experiment: Experiment, methods: list[str]) -> None:
        results = self._results(methods)
        with style():
            result = experiment.evaluate(self.plan, results)
            figures = self._draw(experiment, result)
        document = {
            "name": experiment.name,
            "title": experiment.title,
            "question": experiment.question,
            "source": experiment.source,
            "methods": methods,
            "tables": [table.to_dict() for table in result.tables],
            "findings": [claim.to_dict() for claim in result.claims],
            "figures": figures,
            "notes": result.notes,
        }
        path = self.request.out / f"{experiment.name}.json"
        utils_files.write_json(path, {**document, "about": self.study.about})
        self.study.files.append(path)
        self.study.experiments.append(document)

    def _results(self, methods: list[str]) -> StudyResults:
        for method in methods:
            if method not in self.samples:
                self.samples[method] = self.questions.read(self.store, method)
        return StudyResults(
            self.questions.kinds,
            self.questions.tasks,
            {method: self.samples[method] for method in methods},
            self.questions.item,
            self.probe.prior,
            self.probe.no_prior,
            self.request.seed,
        )

    def _draw(self, experiment: Experiment, result: ExperimentResult) -> list[dict[str, str]]:
        folder = self.request.out / "figures"
        utils_files.make_directory(folder)
        figures = []
        for name, (figure, caption) in result.figures.items():
            for suffix in ("png", "svg"):
                path = folder / f"{experiment.name}-{name}.{suffix}"
                utils_files.write_whole(path, lambda draft, figure=figure: save(figure, draft))  # type: ignore[misc]  # lambda
                self.study.files.append(path)
            figures.append({"file": f"{experiment.name}-{name}", "caption": caption})
        return figures


def _about(request: StudyRequest, data: dict[str, Any], model: dict[str, Any], plan: Plan) -> dict[str, Any]:
    return {
        "model": model,
        "data": data,
        "grid": plan.shape,
        "depth": plan.depth,
        "quick": request.quick,
        "seed": request.seed,
        "processes": request.processes or ((os.cpu_count() or 1) if model["device"] == "cpu" else 1),
        "command": command(),
        "versions": versions(),
        "machine": machine(),
    }
