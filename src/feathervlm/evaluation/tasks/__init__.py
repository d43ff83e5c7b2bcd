"""The tasks by name, each in one file of this package, and the groups of them."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Task
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.utils.pictures import BACKGROUND

SUITE = {
    "localization": ("ocid-ref", "refcocog", "refcoco+", "refcoco"),
    "open-ended": ("textvqa", "gqa", "vqav2", "vizwiz"),
    "challenge": ("pope", "tallyqa", "vsr", "ai2d"),
}
"""The tasks of the three averages of the paper, in the order of its columns."""
GROUPS = {"feather_suite": tuple(name for names in SUITE.values() for name in names)}


def _discover() -> dict[str, type[Task]]:
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for part in vars(importlib.import_module(module.name)).values():
            if isinstance(part, type) and issubclass(part, Task) and "name" in part.__dict__:
                found[part.name] = part
    return found


TASKS = _discover()
"""All tasks by name."""


def chosen(names: Sequence[str], data: Path, background: str = BACKGROUND) -> list[Task]:
    """Return the tasks of these names, with groups spelled out, each once.

    Args:
        names: Names of tasks or groups, or paths of JSONL files.
        data: Directory of the data sets.
        background: Colour under transparent parts of pictures.

    Raises:
        PruningError: There is no such task, or no name is given.
    """
    spelled = dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,)))
    for name in spelled:
        if name not in TASKS and not name.endswith(".jsonl"):
            raise PruningError(
                f"There is no task {name!r}; there are {', '.join(GROUPS)} (a group of twelve), "
                f"{', '.join(sorted(TASKS))}, and files that end in .jsonl."
            )
    if not spelled:
        raise PruningError("No task is named; give --tasks embedded, or feather_suite.")
    tasks = [TASKS[name](data) if name in TASKS else Jsonl(Path(name)) for name in spelled]
    if len({task.name for task in tasks}) < len(tasks):
        raise PruningError(f"Two of {', '.join(spelled)} are files of the same name; rename one.")
    for task in tasks:
        task.background = background
    return tasks
