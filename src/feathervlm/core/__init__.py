"""The algebra of visual-token pruning: layouts, criteria, selectors, budgets, stages, schedules and costs.

It works on plain tensors and needs neither transformers nor a model.
"""

from feathervlm.core import spec
from feathervlm.core.budget import ImageTokens, Keep, check_fraction, check_keep, is_count, kept, kept_tensor, part_of
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.criteria.attention import LastTokenAttention, TextRaterAttention, VisionAttention
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
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.layout import VisualLayout
from feathervlm.core.mergers.base import Merger
from feathervlm.core.mergers.clusters import Clusters
from feathervlm.core.mergers.nearest import Nearest, Neighbors
from feathervlm.core.mergers.neighborhood import Neighborhood
from feathervlm.core.mergers.pool import Pool
from feathervlm.core.partition import part_of_each, rank_in_part
from feathervlm.core.schedule import Layer, Schedule, Stage, check_layers
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf
from feathervlm.core.selectors.base import Selector, Union, check_operands
from feathervlm.core.selectors.basic import Grid, Random, Top
from feathervlm.core.selectors.chained import Chained
from feathervlm.core.selectors.clustering import TopAndClusters
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import DPP, MaxMin
from feathervlm.core.selectors.fixed import Given, KeepAll, KeepNone
from feathervlm.core.selectors.groups import OnePerGroup
from feathervlm.core.selectors.redundancy import Dedup, FarFromPivots, GreedyThreshold
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.selectors.zones import Zone
from feathervlm.core.signals import (
    EncoderKeys,
    EncoderSource,
    Features,
    FeatureSource,
    Keys,
    LayerStates,
    Signal,
    Support,
    TextPart,
)
from feathervlm.core.solve import solve
from feathervlm.core.tensor_ops import first_n
from feathervlm.core.validation import (
    check_bool,
    check_choice,
    check_encoder_layer,
    check_int,
    check_number,
    check_seed,
)

__all__ = [
    "DPP",
    "IQR",
    "BipartiteMerging",
    "Candidates",
    "Chained",
    "Clusters",
    "Criterion",
    "Dedup",
    "DensityPeakMerging",
    "Dilate",
    "EncoderKeys",
    "EncoderMerging",
    "EncoderSource",
    "FarFromPivots",
    "FeatureAttention",
    "FeatureSource",
    "Features",
    "Given",
    "GreedyThreshold",
    "Grid",
    "ImageRows",
    "ImageTokens",
    "KNNDensity",
    "Keep",
    "KeepAll",
    "KeepNone",
    "KeyNorm",
    "Keys",
    "LastTokenAttention",
    "Layer",
    "LayerStates",
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
    "Signal",
    "Stage",
    "Support",
    "Survivors",
    "SurvivorsOf",
    "TextPart",
    "TextRaterAttention",
    "TextSimilarity",
    "Threshold",
    "Top",
    "TopAndClusters",
    "Union",
    "Unprunable",
    "ValueForeground",
    "VisionAttention",
    "VisualLayout",
    "Zone",
    "check_bool",
    "check_choice",
    "check_criterion",
    "check_encoder_layer",
    "check_fraction",
    "check_int",
    "check_keep",
    "check_layers",
    "check_number",
    "check_operands",
    "check_seed",
    "first_n",
    "is_count",
    "kept",
    "kept_tensor",
    "part_of",
    "part_of_each",
    "rank_in_part",
    "solve",
]

Schedule.format = spec
