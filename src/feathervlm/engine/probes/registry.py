"""Which probe measures which class of signals.

A module of this package with a class decorated by `measures` is all that it takes to measure a signal; a user's own
module may use the decorator as well.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from feathervlm.core.errors import PruningError
from feathervlm.core.signals import Signal

ProbeClass = TypeVar("ProbeClass", bound=type)

_PROBES: dict[type[Signal], Any] = {}


def measures(*kinds: type[Signal]) -> Callable[[ProbeClass], ProbeClass]:
    """Return a decorator that registers a probe class for these classes of signals and their subclasses."""

    def register(probe: ProbeClass) -> ProbeClass:
        _PROBES.update(dict.fromkeys(kinds, probe))
        return probe

    return register


@cache
def _load() -> None:
    package = importlib.import_module(__name__.rpartition(".")[0])
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(info.name)


def probe_class(signal: Signal) -> Any:
    """Return the subclass of `Probe` that measures a signal.

    Raises:
        PruningError: If there is none.
    """
    _load()
    for kind in type(signal).__mro__:
        if kind in _PROBES:
            return _PROBES[kind]
    raise PruningError(
        f"No probe measures {signal!r}; decorate one with feathervlm.engine.probes.registry.measures"
        f"({type(signal).__name__})."
    )
