"""The algebra of visual-token pruning: layouts, criteria, selectors, budgets, stages, schedules and costs.

Plain tensors in, plain tensors out. Nothing here imports transformers or knows which model it runs on.
"""

from feathervlm.core.criteria import Criterion, KNNDensity, LastTokenAttention, RandomScore
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.merging import Merger, Pool
from feathervlm.core.schedule import Schedule, Stage, solve
from feathervlm.core.selectors import Everything, Given, Grid, Nothing, Random, Selector, Top

__all__ = [
    "Criterion",
    "Everything",
    "Given",
    "Grid",
    "KNNDensity",
    "LastTokenAttention",
    "Merger",
    "Nothing",
    "Pool",
    "PruningError",
    "Random",
    "RandomScore",
    "Schedule",
    "Selector",
    "Stage",
    "Top",
    "Unprunable",
    "VisualLayout",
    "solve",
]
