"""The algebra of visual-token pruning: layouts, criteria, selectors, budgets, stages, schedules and costs.

Plain tensors in, plain tensors out. Nothing here imports transformers or knows which model it runs on.
"""

from feathervlm.core.candidates import Criterion
from feathervlm.core.criteria.attention import LastTokenAttention, Rating
from feathervlm.core.criteria.features import FeatureAttention, KeyNorm, KNNDensity, TextSimilarity
from feathervlm.core.criteria.random_score import RandomScore
from feathervlm.core.criteria.rotary import Rotary
from feathervlm.core.criteria.transport import Transport
from feathervlm.core.criteria.values import ValueForeground
from feathervlm.core.criteria.variance import Context
from feathervlm.core.encoder.base import Tower
from feathervlm.core.encoder.bipartite import Bipartite
from feathervlm.core.encoder.density_peaks import Anchors
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.mergers.base import Merger
from feathervlm.core.mergers.clusters import Clusters
from feathervlm.core.mergers.nearest import Nearest, Neighbors
from feathervlm.core.mergers.neighborhood import Surroundings
from feathervlm.core.mergers.pool import Pool
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.base import Selector
from feathervlm.core.selectors.basic import Grid, Random, Top
from feathervlm.core.selectors.clustering import Recycled
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import DPP, MaxMin
from feathervlm.core.selectors.fixed import Everything, Given, Nothing
from feathervlm.core.selectors.groups import OnePerGroup
from feathervlm.core.selectors.redundancy import Dedup, Far, Greedy
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.selectors.zones import Zone
from feathervlm.core.solve import solve

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
