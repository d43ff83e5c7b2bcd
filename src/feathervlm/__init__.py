"""Prune visual tokens of Hugging Face vision-language models without losing localization."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from feathervlm import bench, embedded, methods, study
from feathervlm.core import (
    Grid,
    KNNDensity,
    LastTokenAttention,
    PruningError,
    Random,
    Schedule,
    Stage,
    Top,
    Unprunable,
    VisualLayout,
)

if TYPE_CHECKING:
    from feathervlm.api import prune
    from feathervlm.engine.pruning import Pruning
    from feathervlm.engine.report.report import Report

# These import transformers, which takes seconds that `feathervlm --help` need not wait for.
_LATE = {
    "Pruning": "feathervlm.engine.pruning",
    "Report": "feathervlm.engine.report.report",
    "prune": "feathervlm.api",
}

__all__ = [
    "Grid",
    "KNNDensity",
    "LastTokenAttention",
    "Pruning",
    "PruningError",
    "Random",
    "Report",
    "Schedule",
    "Stage",
    "Top",
    "Unprunable",
    "VisualLayout",
    "bench",
    "embedded",
    "methods",
    "prune",
    "study",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
