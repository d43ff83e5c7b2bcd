"""Published methods, each in one short file: `get("feather:keep=0.3")` or `Feather(keep=0.3)`.

To add one, write a file with one dataclass, import it here, and add its row to the shared test table.
"""

from feathervlm.methods.base import Method, available, get
from feathervlm.methods.before_llm import BeforeLLM
from feathervlm.methods.cdpruner import CDPruner
from feathervlm.methods.dart import DART
from feathervlm.methods.divprune import DivPrune
from feathervlm.methods.ensemble import Ensemble
from feathervlm.methods.fastervlm import FasterVLM
from feathervlm.methods.fastv import FastV
from feathervlm.methods.feather import Feather
from feathervlm.methods.greedyprune import GreedyPrune
from feathervlm.methods.hiprune import HiPrune
from feathervlm.methods.holov import HoloV
from feathervlm.methods.knn import KNN
from feathervlm.methods.pool import AveragePool
from feathervlm.methods.prumerge import PruMerge
from feathervlm.methods.pyramiddrop import PyramidDrop
from feathervlm.methods.random_keep import RandomKeep
from feathervlm.methods.shuffled import ShuffledPositions
from feathervlm.methods.star import STAR
from feathervlm.methods.text_only import TextOnly
from feathervlm.methods.topv import TopV
from feathervlm.methods.uniform import Uniform
from feathervlm.methods.visionzip import VisionZip
from feathervlm.methods.vispruner import VisPruner
from feathervlm.methods.vscan import VScan

__all__ = [
    "DART",
    "KNN",
    "STAR",
    "AveragePool",
    "BeforeLLM",
    "CDPruner",
    "DivPrune",
    "Ensemble",
    "FastV",
    "FasterVLM",
    "Feather",
    "GreedyPrune",
    "HiPrune",
    "HoloV",
    "Method",
    "PruMerge",
    "PyramidDrop",
    "RandomKeep",
    "ShuffledPositions",
    "TextOnly",
    "TopV",
    "Uniform",
    "VScan",
    "VisPruner",
    "VisionZip",
    "available",
    "get",
]
