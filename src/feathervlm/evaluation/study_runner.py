"""Running a study's methods over its questions: in this process, or shared out over several of one thread each.

Every answer goes to the ledger as it comes, so that a run may be stopped at any time. Knows no experiment.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from feathervlm.api import prune
from feathervlm.core.layout import Box
from feathervlm.engine.report.overlay import inside
from feathervlm.engine.report.report import Report, finest
from feathervlm.evaluation.samples import Ledger, Record, pack
from feathervlm.evaluation.tasks.study_data import Data, Item
from feathervlm.inference.answerer import Subject, Wanted, load
from feathervlm.inference.model_spec import UNPRUNED

Chunk = tuple[int, ...]
Step = Callable[[str, int], None]
"""Told which method has answered how many more questions."""


@dataclass(frozen=True)
class Job:
    """A chunk of questions under one method."""

    method: str
    chunk: Chunk


def chunks_of(data: Data, size: int) -> list[Chunk]:
    """The questions in chunks of at most `size`, each of one task."""
    by_task: dict[str, list[int]] = {}
    for number, task in enumerate(data.tasks()):
        by_task.setdefault(task, []).append(number)
    return [
        tuple(numbers[start : start + size]) for numbers in by_task.values() for start in range(0, len(numbers), size)
    ]


def run(
    wanted: Wanted, data: Data, methods: Sequence[str], ledger: Ledger, chunk: int, processes: int, step: Step
) -> None:
    """Answer whatever is not in the ledger yet.

    Args:
        wanted: who answers.
        data: what is asked.
        methods: specs, or `UNPRUNED`.
        ledger: where answers go.
        chunk: questions per piece of work; the same in every run of a study.
        processes: 1 to work in this one.
        step: is told of every chunk, of those that were there already, too.

    Raises:
        PruningError: a picture cannot be opened or a method does not fit.
    """
    chunks = chunks_of(data, chunk)
    jobs = []
    for method in methods:
        known = ledger.read(method, chunks)
        step(method, len(known))
        jobs += [Job(method, part) for part in chunks if part[0] not in known]
    if not jobs:
        return
    with _workers(wanted, data, min(processes, len(jobs))) as answered:
        for job, records in answered(jobs):
            ledger.append(job.method, records)
            step(job.method, len(records))


Answered = Callable[[Sequence[Job]], Iterator[tuple[Job, list[Record]]]]


@contextmanager
def _workers(wanted: Wanted, data: Data, processes: int) -> Iterator[Answered]:
    if processes == 1:
        subject = load(wanted, data)
        yield lambda jobs: ((job, ask(subject, data, job)) for job in jobs)
        return
    # Fresh processes, since forking after torch has run is not safe.
    with multiprocessing.get_context("spawn").Pool(processes, _prepare, (wanted, data)) as pool:
        yield partial(pool.imap_unordered, _work)


_own: tuple[Subject, Data]


def _prepare(wanted: Wanted, data: Data) -> None:
    global _own
    torch.set_num_threads(1)
    _own = load(wanted, data), data


def _work(job: Job) -> tuple[Job, list[Record]]:
    return job, ask(*_own, job)


def ask(subject: Subject, data: Data, job: Job) -> list[Record]:
    """Answer a chunk of questions under a method."""
    items = [data.item(number) for number in job.chunk]
    records: list[Record] = []
    for start in range(0, len(items), subject.batch):
        part = items[start : start + subject.batch]
        numbers = job.chunk[start : start + subject.batch]
        report = None
        with torch.inference_mode():
            if job.method == UNPRUNED:
                answers = subject.answer(part)
            else:
                with prune(subject.model, job.method) as pruning:
                    answers = subject.answer(part)
                report = pruning.report
        for place, (number, item, answer) in enumerate(zip(numbers, part, answers, strict=True)):
            records.append(_record(subject, number, item, answer, report, place))
    return records


def _record(subject: Subject, number: int, item: Item, answer: str, report: Report | None, place: int) -> Record:
    right, iou = subject.grade(item, answer)
    box = subject.read(item, answer) if item.box else None
    facts: dict[str, Any] = {"box": box and _rounded(box), "top": item.in_top_half}
    if report is not None and report.pruned:
        grids = [report.grid(stage=stage, batch=place) for stage in range(len(report.stages))]
        planes = report.record.layout.pictures[place][0]
        part = subject.family.shown(subject.processor, item.picture.size)
        covers = inside(part, planes[finest(planes)[0]].box)
        per_layer = report.tokens_per_layer[place]
        frames, rows, cols = grids[0].shape
        facts |= {
            "tokens": round(sum(per_layer) / len(per_layer), 3),
            "flops": round(report.flops_ratio, 5),
            "shape": (frames, rows, cols),
            "kept": tuple(pack(grid.numpy()) for grid in grids),
            "covers": _rounded(covers),
            "target": item.box and _shares(item.box, covers),
        }
    return Record(number, answer, right, None if iou is None else round(iou, 4), **facts)


def _shares(box: Box, covers: Box) -> Box:
    """The box in shares of what the grid covers."""
    left, top, right, bottom = covers
    x, y = right - left, bottom - top
    return _rounded(((box[0] - left) / x, (box[1] - top) / y, (box[2] - left) / x, (box[3] - top) / y))


def _rounded(box: Box) -> Box:
    left, top, right, bottom = (round(side, 5) for side in box)
    return left, top, right, bottom
