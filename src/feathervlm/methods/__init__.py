"""Published methods, each in one short file: `get("feather:keep=0.3")` or `Feather(keep=0.3)`.

Every module of this package that defines a `Method` is imported: `get` finds the method by its name, and its class can
be imported from here. Methods of FEATHER's own study are also imported by name, for editors and type checkers.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from feathervlm.methods.base import REGISTRY, Method
from feathervlm.methods.before_llm import BeforeLLM
from feathervlm.methods.combined import Combined
from feathervlm.methods.ensemble import Ensemble
from feathervlm.methods.fastv import FastV
from feathervlm.methods.feather import Feather
from feathervlm.methods.knn import KNN
from feathervlm.methods.lookup import available, get
from feathervlm.methods.pool import AveragePool
from feathervlm.methods.pyramiddrop import PyramidDrop
from feathervlm.methods.random_keep import RandomKeep
from feathervlm.methods.shuffled import ShuffledPositions
from feathervlm.methods.text_only import TextOnly
from feathervlm.methods.uniform import Uniform

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


__all__ = [
    "KNN",
    "AveragePool",
    "BeforeLLM",
    "Combined",
    "Ensemble",
    "FastV",
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

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
for _method in REGISTRY.values():
    if _method.__module__.startswith(f"{__name__}."):
        globals()[_method.__name__] = _method
        if _method.__name__ not in __all__:
            __all__ += [_method.__name__]
