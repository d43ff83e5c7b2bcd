"""The small trained VLM that ships with the package, its scenes, its tasks and its benchmark.

`load` returns the model and its processor, `benchmark` measures a method on it. `weights/README.md` describes how the
weights were made and what they can and cannot show.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.embedded.model import load

# The benchmark is named by a string, because this package imports the core alone.
_LATE = {"benchmark": "feathervlm.evaluation.embedded_benchmark", "load": "feathervlm.embedded.model"}

__all__ = ["benchmark", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.embedded' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
