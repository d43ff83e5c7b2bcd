"""The algebra of visual-token pruning: layouts, criteria, selectors, budgets, stages, schedules and costs.

Plain tensors in, plain tensors out. Nothing here imports transformers or knows which model it runs on.
"""

from feathervlm.core.candidates import Criterion
from feathervlm.core.criteria.attention import LastTokenAttention, TextRaterAttention
from feathervlm.core.criteria.features import FeatureAttention, KeyNorm, KNNDensity, TextSimilarity
from feathervlm.core.criteria.random_score import RandomScore
from feathervlm.core.criteria.rotary import RotaryPhase
from feathervlm.core.criteria.transport import OptimalTransport
from feathervlm.core.criteria.values import ValueForeground
from feathervlm.core.criteria.variance import LocalVariance
from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.encoder.bipartite import BipartiteMerging
from feathervlm.core.encoder.density_peaks import DensityPeakMerging
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.mergers.base import Merger
from feathervlm.core.mergers.clusters import Clusters
from feathervlm.core.mergers.nearest import Nearest, Neighbors
from feathervlm.core.mergers.neighborhood import Neighborhood
from feathervlm.core.mergers.pool import Pool
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.base import Selector
from feathervlm.core.selectors.basic import Grid, Random, Top
from feathervlm.core.selectors.clustering import TopAndClusters
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import DPP, MaxMin
from feathervlm.core.selectors.fixed import Given, KeepAll, KeepNone
from feathervlm.core.selectors.groups import OnePerGroup
from feathervlm.core.selectors.redundancy import Dedup, FarFromPivots, GreedyThreshold
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.selectors.zones import Zone
from feathervlm.core.solve import solve

__all__ = [
    "DPP",
    "IQR",
    "BipartiteMerging",
    "Clusters",
    "Criterion",
    "Dedup",
    "DensityPeakMerging",
    "Dilate",
    "EncoderMerging",
    "FarFromPivots",
    "FeatureAttention",
    "Given",
    "GreedyThreshold",
    "Grid",
    "KNNDensity",
    "KeepAll",
    "KeepNone",
    "KeyNorm",
    "LastTokenAttention",
    "LocalVariance",
    "MaxMin",
    "Merger",
    "Nearest",
    "Neighborhood",
    "Neighbors",
    "OnePerGroup",
    "OptimalTransport",
    "Pool",
    "PruningError",
    "Random",
    "RandomScore",
    "RotaryPhase",
    "Schedule",
    "Selector",
    "Stage",
    "TextRaterAttention",
    "TextSimilarity",
    "Threshold",
    "Top",
    "TopAndClusters",
    "Unprunable",
    "ValueForeground",
    "VisualLayout",
    "Zone",
    "solve",
]
