"""An evaluation from beginning to end: every question under all methods, resumable, shared by several processes.

A chunk of questions is answered by all methods before the next one, so that a run that was stopped has the same
questions for all of them. Processes deal out the chunks in turns and write to files of their own; the process that
finishes last finds every answer and writes the samples in order. `feathervlm eval`.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from feathervlm.evaluation import runner
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.preflight import check
from feathervlm.evaluation.runner import Work, open_work
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.shard import ALONE, Shard
from feathervlm.evaluation.store import AnswerStore, line, stem
from feathervlm.evaluation.tasks import chosen
from feathervlm.evaluation.tasks.base import CHUNK, QuestionSet, Task
from feathervlm.inference.loading import describe
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.utils import files, provenance
from feathervlm.utils.pictures import BACKGROUND
from feathervlm.utils.progress import Progress


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate.

    Attributes:
        spec: Which model answers.
        methods: Specs; `UNPRUNED` is asked first in any case.
        tasks: Names of tasks and groups, or paths of JSONL files.
        data: Directory of the data sets.
        out: Directory that everything is written to.
        protocol: Rules of scoring, see `evaluation.metrics`.
        limit: Maximum number of questions per split; None for all.
        shard: The part of the work that this process does.
        seed: Seed of the intervals.
        background: Colour under transparent parts of pictures.
    """

    spec: ModelSpec
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    data: Path
    out: Path
    protocol: Protocol = "symmetric"
    limit: int | None = None
    shard: Shard = ALONE
    seed: int = 0
    background: str = BACKGROUND

    @property
    def runs(self) -> tuple[str, ...]:
        """The unpruned model, and every method once."""
        return tuple(dict.fromkeys((UNPRUNED, *self.methods)))


@dataclass(eq=False)
class Evaluation:
    """The answers that are there after this process has done its part.

    Attributes:
        request: What was asked for.
        about: Model, data, versions and settings.
        sets: The questions of every task.
        samples: For each task and method the answers in the order of the questions, without those that other
            processes have not given yet.
        files: The files that were written.
    """

    request: EvalRequest
    about: dict[str, Any]
    sets: list[QuestionSet]
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Number of answers that other processes have not given yet."""
        return sum(
            len(one.questions) - len(samples) for one in self.sets for samples in self.samples[one.name].values()
        )

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return {one.name: one.task for one in self.sets}


def run(request: EvalRequest, progress: Progress = lambda what, done, total: None) -> Evaluation:
    """Answer the questions that are not answered yet.

    Args:
        request: What to evaluate.
        progress: Callback, called with what is done now, the number of questions answered by this process, and the
            number of questions it has to answer (0 if that is not known yet).

    Raises:
        PruningError: An input does not fit; before weights are read if it can be known then.
    """
    progress("reading the questions", 0, 0)
    tasks = chosen(request.tasks, request.data, request.background)
    sets = [QuestionSet(task, task.questions(request.limit)) for task in tasks]
    progress("looking at the model", 0, 0)
    checked = check(request.spec, sets, request.runs, request.protocol)
    for one in sets:
        progress(f"reading the pictures of {one.task.title}", 0, 0)
        one.task.check(one.questions)
    spec = replace(request.spec, device=request.shard.device(checked.device))
    about = _about(request, describe(checked), sets)
    length = request.spec.max_new_tokens
    key = {"model": about["model"], "protocol": request.protocol, "chunk": CHUNK, "max_new_tokens": length}
    begun = {"commit": provenance.commit(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    store = AnswerStore(request.out / "answers", key, begun, part=request.shard.rank, holds="an evaluation")
    about["begun"] = store.begun
    store.note(sets)
    work = open_work(sets, request.runs, store, request.shard)
    answered, total = 0, sum(len(piece.chunk) for piece in work)

    def done(piece: Work) -> None:
        nonlocal answered
        answered += len(piece.chunk)
        progress(sets[piece.part].task.title, answered, total)

    if work:
        runner.check_pictures(sets, work, request.protocol, progress)
        progress("loading the model", 0, total)
        runner.run(spec, sets, work, store, protocol=request.protocol, done=done)
    return _collect(Evaluation(request, about, sets), store)


def _collect(evaluation: Evaluation, store: AnswerStore) -> Evaluation:
    """Read the answers of all processes, and write them in the order of the questions once none is missing."""
    for one in evaluation.sets:
        runs = {method: store.read(one, method) for method in evaluation.request.runs}
        evaluation.samples[one.name] = {
            method: [samples[number] for number in sorted(samples)] for method, samples in runs.items()
        }
    if not evaluation.missing:
        for name, answered in evaluation.samples.items():
            for method, found in answered.items():
                path = evaluation.request.out / "samples" / name / f"{stem(method)}.jsonl"
                files.make_directory(path.parent)
                files.write_text(path, "".join(map(line, found)))
                evaluation.files.append(path)
    return evaluation


def _about(request: EvalRequest, model: dict[str, Any], sets: list[QuestionSet]) -> dict[str, Any]:
    # The index of one of several equal accelerators and the answer length of other tasks change no answer.
    model = {name: value for name, value in model.items() if name != "max_new_tokens"}
    return {
        "model": model | {"device": model["device"].partition(":")[0]},
        "methods": list(request.runs),
        "tasks": {
            one.name: {"questions": len(one.questions), "paper": one.task.count, "fingerprint": one.fingerprint}
            for one in sets
        },
        "protocol": request.protocol,
        "limit": request.limit,
        "seed": request.seed,
        "processes": request.shard.world,
        "command": provenance.command(),
        "machine": provenance.machine(),
    }
