"""Published methods, each in one short file: `get("feather:keep=0.3")` or `Feather(keep=0.3)`.

To add one, write a file with one dataclass, import it here, and add its row to the shared test table.
"""

from feathervlm.methods.base import Method, available, get
from feathervlm.methods.before_llm import BeforeLLM
from feathervlm.methods.ensemble import Ensemble
from feathervlm.methods.fastervlm import FasterVLM
from feathervlm.methods.fastv import FastV
from feathervlm.methods.feather import Feather
from feathervlm.methods.knn import KNN
from feathervlm.methods.pool import AveragePool
from feathervlm.methods.pyramiddrop import PyramidDrop
from feathervlm.methods.random_keep import RandomKeep
from feathervlm.methods.shuffled import ShuffledPositions
from feathervlm.methods.text_only import TextOnly
from feathervlm.methods.uniform import Uniform

__all__ = [
    "KNN",
    "AveragePool",
    "BeforeLLM",
    "Ensemble",
    "FastV",
    "FasterVLM",
    "Feather",
    "Method",
    "PyramidDrop",
    "RandomKeep",
    "ShuffledPositions",
    "TextOnly",
    "Uniform",
    "available",
    "get",
]
