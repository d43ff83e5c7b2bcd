"""Measures time and memory of a model with and without pruning, side by side.

`run` takes a `BenchRequest`: a model, or a preset with random weights and real dimensions (speed does not depend on
the weights), with methods, numbers of visual tokens and batch sizes. It returns a document that can be written as JSON.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.bench.run_bench import BenchRequest, run

# These import transformers, which takes seconds that `feathervlm --help` need not wait for.
_LAZY = {"BenchRequest": "feathervlm.bench.run_bench", "run": "feathervlm.bench.run_bench"}

__all__ = ["BenchRequest", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'feathervlm.bench' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
