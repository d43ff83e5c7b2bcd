"""How long a model takes with and without pruning, and how much memory: measured side by side, never estimated.

`run` answers a `Request`: a model, or random weights of real dimensions by the name of a preset (speed does not depend
on the weights), with some methods, numbers of visual tokens and batch sizes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.bench.run_bench import Request, run

# These import transformers, which takes seconds that `feathervlm --help` need not wait for.
_LATE = {"Request": "feathervlm.bench.run_bench", "run": "feathervlm.bench.run_bench"}

__all__ = ["Request", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.bench' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
