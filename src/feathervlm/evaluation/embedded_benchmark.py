"""The benchmark of the embedded model: what a method costs on every task, compared in pairs with the unpruned model."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule
from feathervlm.embedded.assets import SHIPPED
from feathervlm.embedded.model import load
from feathervlm.embedded.tasks import TASKS, get
from feathervlm.evaluation.embedded_result import BenchmarkResult, TaskResult
from feathervlm.evaluation.runner import Asker
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.inference.answerer import AnyMethod
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import Method
from feathervlm.utils.progress import Progress, bar


def benchmark(
    method: str | Method | Schedule | None = None,
    tasks: Sequence[str] | str | None = None,
    n: int = 200,
    seed: int = 0,
    *,
    unseen: bool = False,
    batch: int = 40,
    progress: bool | Progress = True,
    model: Any = None,
    processor: Any = None,
    unpruned: BenchmarkResult | None = None,
) -> BenchmarkResult:
    """Measure a method on the embedded model.

    Args:
        method: Method to prune with, as for `prune`; None measures the unpruned model alone.
        tasks: Names of tasks; the default is all ten (see `embedded.tasks.TASKS`).
        n: Questions per task, each about a scene of its own.
        seed: Seed of the held-out questions; another seed gives other questions.
        unseen: Whether to ask about object sizes and counts that do not occur in training.
        batch: Questions per forward.
        progress: Whether to show a bar on stderr, if that is a terminal; or a callback, called with what is measured,
            the number of answers and the number of questions.
        model: A model of another training run instead of the one that ships; it needs its `processor`.
        processor: Processor of `model`.
        unpruned: A previous unpruned result of the same model on the same questions, which saves that run. The result
            of the shipped model is remembered within a process.

    Returns:
        Accuracy per task with intervals, differences to the unpruned run on the same questions, and what was kept.

    Raises:
        PruningError: A task or the method is unknown, n or batch is below 1, or `unpruned` does not answer these
            questions or comes from another model.

    >>> print(benchmark("uniform:layer=3", ["existence"], n=4, progress=False).tasks["existence"].n)
    4
    """
    names = [tasks] if isinstance(tasks, str) else list(TASKS if tasks is None else tasks)
    for name in names:
        get(name)
    if not names or n < 1 or batch < 1:
        raise PruningError(f"n={n}, batch={batch}, tasks={names} asks nothing; give positive numbers and a task.")
    if (model is None) != (processor is None):
        raise PruningError("A model needs its processor and the other way round; give both or neither.")
    loaded = _shipped() if model is None else LoadedModel.of(model, processor)
    loaded = replace(loaded, settings=replace(loaded.settings, batch=batch))
    if method is not None:
        prune(loaded.model, method).remove()  # refuses an unknown method before the unpruned run
    empty = BenchmarkResult(UNPRUNED, SHIPPED if model is None else str(model.name_or_path), n, seed, unseen, {})
    if unpruned is not None:
        _check(unpruned, names, empty)
    told: Progress = progress if callable(progress) else lambda what, done, total: None
    with bar("questions") if progress is True else nullcontext(told) as callback:
        measure = partial(_measure, Asker(loaded), names, callback)
        unpruned = unpruned or measure(empty)
        return unpruned if method is None else measure(replace(empty, method=str(method)), method, unpruned)


@lru_cache(maxsize=1)
def _shipped() -> LoadedModel:
    return LoadedModel.of(*load())


def _check(unpruned: BenchmarkResult, names: Sequence[str], empty: BenchmarkResult) -> None:
    if unpruned.method != UNPRUNED or unpruned.model != empty.model:
        raise PruningError(
            f"The result to compare with is of {unpruned.method!r} on {unpruned.model!r}; give an unpruned one of "
            f"{empty.model!r}."
        )
    same = (unpruned.n, unpruned.seed, unpruned.unseen) == (empty.n, empty.seed, empty.unseen)
    if not same or not set(names) <= set(unpruned.tasks):
        raise PruningError("The unpruned result answers other tasks, n, seed or sizes; measure it with the same ones.")


_remembered: dict[tuple[Any, ...], TaskResult] = {}
"""Unpruned results of the shipped model, by questions and batch size."""


def _measure(
    asker: Asker,
    names: Sequence[str],
    progress: Progress,
    result: BenchmarkResult,
    method: AnyMethod = None,
    unpruned: BenchmarkResult | None = None,
) -> BenchmarkResult:
    """Answer the questions of tasks in batches; unpruned results of the shipped model are remembered."""
    batch, done, found = asker.answerer.batch, 0, dict[str, TaskResult]()
    for name in names:
        key = (name, result.n, result.seed, result.unseen, batch)
        kept = _remembered if method is None and result.model == SHIPPED else dict[tuple[Any, ...], TaskResult]()
        begun, samples = time.perf_counter(), list[Sample]()
        if key in kept:
            progress(result.method, done + result.n, result.n * len(names))
        else:
            task = Embedded(Path(), result.n, result.seed, unseen=result.unseen, splits=(name,))
            questions = QuestionSet(task, task.questions(None))
            for start in range(0, result.n, batch):
                numbers = range(start, min(start + batch, result.n))
                samples += asker.answer(questions, numbers, {result.method: method})[result.method]
                progress(result.method, done + len(samples), result.n * len(names))
            right = None if unpruned is None else unpruned.tasks[name].right
            kept[key] = TaskResult(name, questions.questions, samples, time.perf_counter() - begun, right)
        found[name], done = kept[key], done + result.n
    return replace(result, tasks=found)
