"""What a method is: a named, parameterised schedule, written as one frozen dataclass in one file.

A subclass registers itself under its `name`. A method does not depend on a model; its schedule defines it completely.
Methods of other packages and of single files are found as well.
"""

import hashlib
import json
import os
import re
import sys
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, Self

from feathervlm.core import PruningError, Schedule, solve
from feathervlm.core.spec import write_value
from feathervlm.utils.provenance import plugins

REGISTRY: dict[str, type["Method"]] = {}
GROUP = "feathervlm.methods"
"""Entry points of this group are modules or classes of methods in other packages."""
LOADED = "FEATHERVLM_LOAD"
"""Environment variable with the files of `load`, so that worker processes load them as well."""


class _NameTakenError(PruningError):
    """Two methods have the same name."""


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods.

    Attributes:
        name: Name on the command line, lower case.
        paper: Source of the method, arXiv id first.
        budget_parameter: Name of the parameter in (0, 1] that `solve` may change, None if there is none.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    budget_parameter: ClassVar[str | None] = "keep"

    def __init_subclass__(cls, registered: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not registered:
            return
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise TypeError(f"{cls.__name__}.name={name!r} must be lower-case letters and digits joined by hyphens.")
        taken = REGISTRY.get(cls.name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            one, other = (f"{kind.__module__}.{kind.__qualname__}" for kind in (taken, cls))
            raise _NameTakenError(f"Two methods are called {cls.name!r}, {one} and {other}; rename one of them.")
        REGISTRY[cls.name] = cls

    @abstractmethod
    def schedule(self) -> Schedule:
        """Build the schedule of this method."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # users may give lists, and a method is hashable
                object.__setattr__(self, field.name, tuple(value))
        # Building the schedule checks every parameter, so a bad one fails here and not in the first forward.
        self.schedule()

    def __str__(self) -> str:
        """Return the spec from which `get` makes this method again."""
        changed = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != default_of(field):
                changed.append(f"{field.name}={written(value)}")
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @classmethod
    def summary(cls) -> str:
        """Return the idea in one sentence: the first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    def with_budget(self, value: float) -> Self:
        """Return a copy whose budget parameter is `value`.

        Raises:
            PruningError: If the method has no such parameter.
        """
        if self.budget_parameter is None:
            raise PruningError(f"{self.name} has no budget parameter to solve for; choose another method.")
        return replace(self, **{self.budget_parameter: value})

    def fingerprint(self) -> str:
        """Return a hash of the method's name, parameters and schedule, the same on every machine.

        Raises:
            PruningError: If the schedule cannot be written down.
        """
        parameters = {field.name: written(getattr(self, field.name)) for field in fields(self)}
        parts = [self.name, parameters, self.schedule().fingerprint()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def solve(self, average: float, grids: Sequence[Sequence[int]], depth: int) -> Self:
        """Return a copy that costs `average` visual tokens per layer on images of these (frames, rows, cols) grids.

        >>> from feathervlm.methods import FastV
        >>> round(FastV(layer=3).solve(192, grids=[(1, 24, 24)], depth=32).keep, 3)
        0.266

        Raises:
            PruningError: If that average cannot be reached.
        """
        return solve(self, average, grids, depth)


def default_of(field: "Field[Any]") -> Any:
    """Return the default of a parameter; `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def written(value: Any) -> str:
    """Write a parameter's value as it stands in a spec."""
    return f"({value})" if isinstance(value, Method) else write_value(value)


def check_method(value: object, example: str) -> None:
    """Raise `PruningError` unless a parameter called `method` holds a method."""
    if not isinstance(value, Method):
        raise PruningError(f"method={value!r} is not a method; write {example}.")


def load(path: Path | str) -> None:
    """Load a Python file that defines methods, here and in the worker processes that this process starts.

    Raises:
        PruningError: If the file cannot be loaded, defines no method, or uses a name that is taken.
    """
    path = Path(path).resolve()
    module_name = f"feathervlm_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if module_name in sys.modules:
        return
    spec = spec_from_file_location(module_name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise PruningError(f"{path} is not a Python file; give the path of a .py file that defines methods.")
    before = dict(REGISTRY)
    module = sys.modules[module_name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if before.keys() == REGISTRY.keys():
            raise PruningError("it defines no method; derive a frozen dataclass from feathervlm.methods.Method")
    except Exception as error:
        del sys.modules[module_name]
        REGISTRY.clear()
        REGISTRY.update(before)
        reason = str(error) if isinstance(error, PruningError) else f"{type(error).__name__}: {error}"
        raise PruningError(f"{path} cannot be loaded: {reason.rstrip('.')}.") from error
    os.environ[LOADED] = os.pathsep.join(dict.fromkeys([*_loaded_files(), str(path)]))


_complete = False


def load_all() -> None:
    """Load the methods of other packages and the files that a parent process loaded, once.

    Raises:
        PruningError: If two methods have the same name.
    """
    global _complete
    if _complete:
        return
    _complete = True  # first, because a module may look up methods while it is loaded
    try:
        for path in _loaded_files():
            load(path)
        for plugin in plugins(GROUP):
            try:
                plugin.load()
            except _NameTakenError:
                raise
            except Exception as error:  # whatever another package may raise
                package = plugin.dist.name if plugin.dist else plugin.value
                warnings.warn(
                    f"feathervlm cannot load the methods of {package} ({plugin.value}): {type(error).__name__}: "
                    f"{error}; update or uninstall {package}.",
                    stacklevel=3,
                )
    except PruningError:
        _complete = False
        raise


def _loaded_files() -> list[str]:
    return [path for path in os.environ.get(LOADED, "").split(os.pathsep) if path]
