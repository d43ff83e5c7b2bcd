"""The algebra of visual-token pruning: layouts, criteria, selectors, budgets, stages, schedules and costs.

Plain tensors in, plain tensors out. Nothing here imports transformers or knows which model it runs on.
"""

from feathervlm.core.aggregation import Surroundings
from feathervlm.core.algebra import Selector
from feathervlm.core.criteria import Criterion, KNNDensity, LastTokenAttention, RandomScore
from feathervlm.core.diversity import DPP, MaxMin
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.fixed import Everything, Given, Nothing
from feathervlm.core.foreground import Rotary, ValueForeground
from feathervlm.core.layout import VisualLayout
from feathervlm.core.merging import Merger, Pool
from feathervlm.core.nearest import Nearest, Neighbors
from feathervlm.core.recycling import Clusters, Recycled
from feathervlm.core.redundancy import Dedup, Far, Greedy
from feathervlm.core.relevance import FeatureAttention, KeyNorm, Rating, TextSimilarity
from feathervlm.core.schedule import Schedule, Stage, solve
from feathervlm.core.selectors import Grid, Random, Top
from feathervlm.core.surroundings import Context, Dilate
from feathervlm.core.thresholds import IQR, Threshold
from feathervlm.core.tower import Anchors, Bipartite, OnePerGroup, Tower
from feathervlm.core.transport import Transport
from feathervlm.core.zones import Zone

__all__ = [
    "DPP",
    "IQR",
    "Anchors",
    "Bipartite",
    "Clusters",
    "Context",
    "Criterion",
    "Dedup",
    "Dilate",
    "Everything",
    "Far",
    "FeatureAttention",
    "Given",
    "Greedy",
    "Grid",
    "KNNDensity",
    "KeyNorm",
    "LastTokenAttention",
    "MaxMin",
    "Merger",
    "Nearest",
    "Neighbors",
    "Nothing",
    "OnePerGroup",
    "Pool",
    "PruningError",
    "Random",
    "RandomScore",
    "Rating",
    "Recycled",
    "Rotary",
    "Schedule",
    "Selector",
    "Stage",
    "Surroundings",
    "TextSimilarity",
    "Threshold",
    "Top",
    "Tower",
    "Transport",
    "Unprunable",
    "ValueForeground",
    "VisualLayout",
    "Zone",
    "solve",
]
