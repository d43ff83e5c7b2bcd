"""Prune visual tokens of Hugging Face vision-language models without losing localization."""

from feathervlm import methods
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
from feathervlm.engine.pruning import Pruning
from feathervlm.engine.report import Report
from feathervlm.pruning import prune

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
    "methods",
    "prune",
]
