"""What a method is: a named, parameterised schedule. One frozen dataclass in one file for each published method.

A subclass registers itself under its `name`. It knows nothing of models; its schedule says it all.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule
from feathervlm.core.solve import solve
from feathervlm.core.spec import build, parse, write_value

REGISTRY: dict[str, type["Method"]] = {}


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods.

    Class attributes:
        name: how the command line calls it, lower case.
        paper: where it comes from, arXiv id first.
        free: the parameter in (0, 1] that `solve` may turn, None if there is none.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    free: ClassVar[str | None] = "keep"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise TypeError(f"{cls.__name__}.name={name!r} must be lower-case letters and digits joined by hyphens.")
        taken = REGISTRY.get(cls.name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"Two methods are called {cls.name!r}: {taken.__qualname__} and {cls.__qualname__}.")
        REGISTRY[cls.name] = cls

    @abstractmethod
    def schedule(self) -> Schedule:
        """The stages that this method is."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON and users write lists; a method is hashable
                object.__setattr__(self, field.name, tuple(value))
        # Building the schedule checks every parameter, so a bad one fails here and not in the first forward.
        self.schedule()

    def __str__(self) -> str:
        """The spec that makes this method again."""
        changed = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                written = f"({value})" if isinstance(value, Method) else write_value(value)
                changed.append(f"{field.name}={written}")
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @classmethod
    def summary(cls) -> str:
        """The idea in one sentence: the first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def with_free(self, value: float) -> Self:
        """A copy whose free parameter is `value`."""
        if self.free is None:
            raise PruningError(f"{self.name} has no free parameter to solve for.")
        return replace(self, **{self.free: value})

    def solve(self, average: float, grids: Sequence[Sequence[int]], depth: int) -> Self:
        """A copy that costs `average` visual tokens per layer on images of these (frames, rows, cols) grids.

        >>> from feathervlm.methods import FastV
        >>> round(FastV(layer=3).solve(192, grids=[(1, 24, 24)], depth=32).keep, 3)
        0.266

        Raises:
            PruningError: if that average cannot be reached.
        """
        return solve(self, average, grids, depth)


def get(spec: str) -> Method:
    """The method that a spec such as `feather` or `feather:keep=0.3,layers=8+16` names.

    Raises:
        PruningError: on an unknown method or parameter, or a value out of range.
    """
    name, parameters = parse(spec)
    if name not in REGISTRY:
        raise PruningError(f"There is no method {name!r}; there are {', '.join(available())}.")
    cls = REGISTRY[name]
    for field in fields(cls):
        nested = parameters.get(field.name)
        if field.type in (Method, Method | None, "Method", "Method | None") and isinstance(nested, str):
            parameters[field.name] = get(nested)
    method: Method = build(cls, parameters, name)
    return method


def available() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted(REGISTRY))
