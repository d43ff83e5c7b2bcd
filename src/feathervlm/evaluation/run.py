"""An evaluation from beginning to end: every question under all methods, resumable, shared out over processes.

The model is loaded once. A chunk of questions is answered by all methods before the next one, so that whatever is there
after a stop is there for all of them. Processes deal the chunks out among themselves like cards, and write to files of
their own; the one that finishes last finds everything answered and writes it down in order. Knows no task by name, and
nothing of the terminal.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from feathervlm.evaluation.asking import Asker, Sample
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.preflight import check
from feathervlm.evaluation.shard import ALONE, Shard
from feathervlm.evaluation.store import Journal, line, stem
from feathervlm.evaluation.tasks import chosen
from feathervlm.evaluation.tasks.base import Question, Task, fingerprint
from feathervlm.inference.answerer import describe, load_for
from feathervlm.inference.model_spec import UNPRUNED, Wanted
from feathervlm.utils import files as utils_files
from feathervlm.utils.provenance import command, commit, machine

CHUNK = 40
"""Questions that are written at once: so many answers per method are lost at most when a run is killed."""
Told = Callable[[str, int, int], None]
"""Told what is being asked, how many questions are answered, and how many there are for this process."""


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        wanted: who answers.
        methods: specs; `UNPRUNED` is asked first whether it is among them or not.
        tasks: names of tasks and groups.
        data: where the data sets are.
        out: where everything is written.
        protocol: see `scoring`.
        limit: questions per split at most; None for all.
        shard: the part of this process.
        seed: of the intervals.
    """

    wanted: Wanted
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    data: Path
    out: Path
    protocol: Protocol = "symmetric"
    limit: int | None = None
    shard: Shard = ALONE
    seed: int = 0

    @property
    def runs(self) -> tuple[str, ...]:
        """The unpruned model, and every method once."""
        return tuple(dict.fromkeys((UNPRUNED, *self.methods)))


@dataclass(frozen=True, eq=False)
class Asked:
    """A task with its questions, in the order in which they are asked."""

    task: Task
    questions: list[Question]

    @cached_property
    def fingerprint(self) -> str:
        """Of the questions and what is right."""
        return fingerprint(self.questions)

    @cached_property
    def chunks(self) -> list[tuple[int, ...]]:
        """Numbers of questions that are written together, each of one split."""
        splits: dict[str, list[int]] = {}
        for number, question in enumerate(self.questions):
            splits.setdefault(question.split, []).append(number)
        return [tuple(part[start : start + CHUNK]) for part in splits.values() for start in range(0, len(part), CHUNK)]

    def run(self, method: str) -> str:
        """The name of a method's answers to exactly these questions."""
        return f"{self.task.name} {self.fingerprint[:8]} {method}"


@dataclass(eq=False)
class Evaluation:
    """What is there when this process has done its part.

    Attributes:
        request: what was asked for.
        about: the model, the data, versions and settings.
        asked: tasks with their questions.
        samples: for each task and method, the answers in the order of the questions; what other processes have not
            answered yet is left out.
        files: what was written.
    """

    request: Request
    about: dict[str, Any]
    asked: list[Asked]
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """How many answers are missing, with which other processes are busy."""
        return sum(
            len(one.questions) - len(samples) for one in self.asked for samples in self.samples[one.task.name].values()
        )


def run(request: Request, told: Told = lambda what, done, total: None) -> Evaluation:
    """Answer what is not answered yet.

    Raises:
        PruningError: on whatever the user can put right, before weights are read if it can be known then.
    """
    told("reading the questions", 0, 0)
    asked = []
    for kind in chosen(request.tasks):
        task = kind(request.data)
        asked.append(Asked(task, task.questions(request.limit)))
        task.check(asked[-1].questions)
    told("looking at the model", 0, 0)
    fit = check(request.wanted, {one.task: one.questions for one in asked}, request.methods, request.protocol)
    wanted = replace(request.wanted, device=request.shard.device(fit.device))
    about = _about(request, describe(wanted), asked)
    key = {"model": about["model"], "protocol": request.protocol, "chunk": CHUNK}
    begun = {"commit": commit(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    journal = Journal(request.out / "answers", key, Sample, begun, part=request.shard.rank, holds="an evaluation")
    about["begun"] = journal.begun
    open_work = _open_work(request, asked, journal)
    if open_work:
        total, done = sum(len(part) for _, part, _ in open_work), 0
        told("loading the model", 0, total)
        subject = replace(load_for(wanted), boxes=fit.boxes)
        asker = Asker(subject, request.protocol)
        for one, part, methods in open_work:
            told(one.task.title, done, total)
            found: dict[str, list[Sample]] = {method: [] for method in methods}
            for start in range(0, len(part), subject.batch):
                batch = {number: one.questions[number] for number in part[start : start + subject.batch]}
                for method, samples in asker.ask(one.task, batch, methods).items():
                    found[method] += samples
            for method, samples in found.items():
                journal.append(one.run(method), samples)
            done += len(part)
            told(one.task.title, done, total)
    return _collect(Evaluation(request, about, asked), journal)


def _open_work(
    request: Request, asked: list[Asked], journal: Journal[Sample]
) -> list[tuple[Asked, tuple[int, ...], list[str]]]:
    """The chunks of this process that some methods have not answered, with these methods."""
    work = []
    place = 0
    for one in asked:
        known = {method: journal.read(one.run(method), one.chunks) for method in request.runs}
        for part in one.chunks:
            missing = [method for method in request.runs if part[0] not in known[method]]
            if missing and place % request.shard.world == request.shard.rank:
                work.append((one, part, missing))
            place += 1
    return work


def _collect(evaluation: Evaluation, journal: Journal[Sample]) -> Evaluation:
    """Read what all processes have answered; write it in the order of the questions once nothing is missing."""
    for one in evaluation.asked:
        runs = {method: journal.read(one.run(method), one.chunks) for method in evaluation.request.runs}
        evaluation.samples[one.task.name] = {
            method: [found[number] for number in sorted(found)] for method, found in runs.items()
        }
    if not evaluation.missing:
        for name, runs_of_task in evaluation.samples.items():
            folder = evaluation.request.out / "samples" / name
            utils_files.make_directory(folder, "--out")
            for method, samples in runs_of_task.items():
                path = folder / f"{stem(method)}.jsonl"
                text = "".join(map(line, samples))
                utils_files.write_whole(path, lambda draft, text=text: draft.write_text(text))  # type: ignore[misc]  # lambda
                evaluation.files.append(path)
    return evaluation


def _about(request: Request, model: dict[str, Any], asked: list[Asked]) -> dict[str, Any]:
    # Which of several equal accelerators, and how long answers of other kinds of questions are, changes nothing.
    device = model["device"].partition(":")[0]
    settled = {name: value for name, value in model.items() if name != "max_new_tokens"} | {"device": device}
    return {
        "model": settled,
        "methods": list(request.runs),
        "tasks": {
            one.task.name: {"questions": len(one.questions), "paper": one.task.count, "fingerprint": one.fingerprint}
            for one in asked
        },
        "protocol": request.protocol,
        "limit": request.limit,
        "seed": request.seed,
        "processes": request.shard.world,
        "command": command(),
        "machine": machine(),
    }
