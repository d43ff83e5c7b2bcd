"""The embedded model's benchmark: what a method costs on every task, on the same questions as the unpruned run.

Answers are generated greedily in batches. The result keeps every single answer's fate, so that any two runs over the
same questions can be compared in pairs. It knows nothing of files or the terminal, but for a progress bar.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule
from feathervlm.embedded.assets import SHIPPED
from feathervlm.embedded.model import load
from feathervlm.embedded.tasks import TASKS, get
from feathervlm.evaluation.embedded_result import Measured, Result
from feathervlm.evaluation.embedded_run import Exam, Pruned, Step, Subject, run_task
from feathervlm.methods import Method

Progress = Callable[[str, int, int], None]
"""Told what is measured, how many questions are answered, and how many there are."""


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
    unpruned: Result | None = None,
) -> Result:
    """Measure a method on the embedded model.

    Args:
        method: what to prune with, as for `prune`; None measures the unpruned model alone.
        tasks: names of tasks, default all ten (see `tasks.TASKS`).
        n: questions per task, each about a scene of its own.
        seed: of the held-out questions; another seed gives other questions.
        unseen: ask about object sizes and counts which do not occur in training.
        batch: questions per forward.
        progress: show a bar on stderr, if that is a terminal; or a function that is told what is measured, how many
            questions are answered, and how many there are.
        model: a model of another training run instead of the one that ships; with its `processor`.
        processor: see `model`.
        unpruned: an earlier unpruned result of the same model on the same questions, to spare that run. The shipped
            model's is remembered within a process.

    Returns:
        Accuracy per task with intervals, differences to the unpruned run on the same questions, what was kept.

    Raises:
        PruningError: if a task or the method is unknown, n or batch is below 1, or `unpruned` does not answer these
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
    shipped = model is None
    subject = Subject(*_own(), SHIPPED) if shipped else Subject(model, processor, str(model.name_or_path))
    exam = Exam(n, seed, unseen, batch)
    if method is not None:
        prune(subject.model, method).remove()  # a misspelt method should not wait for the unpruned run
    if unpruned is not None:
        _check(unpruned, names, exam, subject)
    with _told(progress, n * len(names)) as step:
        if unpruned is None:
            run = _remembered if shipped else run_task
            found = {name: run(subject, exam, name, step) for name in names}
            unpruned = Result.of("unpruned", subject.name, n, seed, unseen, found)
        if method is None:
            return unpruned
        label = method if isinstance(method, str) else str(method)
        with prune(subject.model, method) as pruning:
            pruned = Pruned(label, pruning, unpruned)
            found = {name: run_task(subject, exam, name, step, pruned) for name in names}
    return Result.of(label, subject.name, n, seed, unseen, found)


@lru_cache(maxsize=1)
def _own() -> tuple[Any, Any]:
    return load()


def _check(unpruned: Result, names: Sequence[str], exam: Exam, subject: Subject) -> None:
    if unpruned.method != "unpruned" or unpruned.model != subject.name:
        raise PruningError(
            f"The result to compare with is of {unpruned.method!r} on {unpruned.model!r}; give an unpruned one of "
            f"{subject.name!r}."
        )
    asked = (unpruned.n, unpruned.seed, unpruned.unseen)
    if asked != (exam.n, exam.seed, exam.unseen) or not set(names) <= set(unpruned.tasks):
        raise PruningError("The unpruned result answers other tasks, n, seed or sizes; measure it with the same ones.")


@contextmanager
def _told(progress: bool | Progress, total: int) -> Iterator[Step]:
    done: Counter[str] = Counter()
    shown: dict[str, TaskID] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=progress is not True or not console.is_terminal) as bar:

        def step(what: str, more: int) -> None:
            done[what] += more
            if callable(progress):
                progress(what, done[what], total)
                return
            if what not in shown:
                shown[what] = bar.add_task(what, total=total)
            bar.advance(shown[what], more)

        yield step


_memory: dict[tuple[Exam, str], Measured] = {}


def _remembered(subject: Subject, exam: Exam, task: str, step: Step) -> Measured:
    if (exam, task) in _memory:
        step("unpruned", exam.n)
    else:
        _memory[exam, task] = run_task(subject, exam, task, step)
    return _memory[exam, task]
