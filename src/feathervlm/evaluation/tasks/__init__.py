"""The tasks, each in one short file that is found by itself; and the groups in which they are asked for."""

import importlib
import pkgutil
from collections.abc import Sequence

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Task

SUITE = {
    "localization": ("ocid-ref", "refcocog", "refcoco+", "refcoco"),
    "open-ended": ("textvqa", "gqa", "vqav2", "vizwiz"),
    "challenge": ("pope", "tallyqa", "vsr", "ai2d"),
}
"""The paper's three averages, in the order of its columns."""
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


def chosen(names: Sequence[str]) -> list[type[Task]]:
    """The tasks of these names, groups spelled out, each once.

    Raises:
        PruningError: if there is no such task, or none is named.
    """
    spelled = [one for name in names for one in GROUPS.get(name, (name,))]
    for name in spelled:
        if name not in TASKS:
            raise PruningError(
                f"There is no task {name!r}; there are {', '.join(GROUPS)} (a group of twelve), "
                f"{', '.join(sorted(TASKS))}."
            )
    if not spelled:
        raise PruningError("No task is named; give --tasks embedded, or feather_suite.")
    return [TASKS[name] for name in dict.fromkeys(spelled)]
