"""From a spec to its method: a name with parameters, several of them joined by `+`, or the file of a schedule."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

from feathervlm.core import PruningError, Schedule
from feathervlm.core.spec import build, parse, split_joined
from feathervlm.methods.base import REGISTRY, Method, load_all
from feathervlm.methods.combined import Combined


@dataclass(frozen=True)
class ScheduleFile(Method, registered=False):
    """A schedule that `Schedule.save` wrote to a JSON file, as a method.

    Args:
        path: The file; it is read once, when the method is made.

    Raises:
        PruningError: If the file does not hold a schedule.
    """

    name: ClassVar[str] = "schedule-file"
    paper: ClassVar[str] = "a schedule in a file"
    budget_parameter: ClassVar[str | None] = None

    path: str

    @cached_property
    def _loaded(self) -> Schedule:
        return Schedule.load(self.path)

    def schedule(self) -> Schedule:
        return self._loaded

    def fingerprint(self) -> str:
        return self.schedule().fingerprint()

    def __str__(self) -> str:
        return self.path


def get(spec: str) -> Method:
    """Return the method of a spec such as `feather` or `feather:keep=0.3,layers=8+16`, or of a schedule's JSON file.

    `tome:keep=0.6+feather` joins methods, each of which prunes what the one before it leaves.

    Raises:
        PruningError: On an unknown method or parameter, a value out of range, methods that cannot be joined, or a file
            that holds no schedule.
    """
    if spec.strip().endswith(".json"):
        return ScheduleFile(spec.strip())
    load_all()
    methods = [_single(part) for part in split_joined(spec)]
    return methods[0] if len(methods) == 1 else Combined(tuple(methods))


def _single(spec: str) -> Method:
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


def resolve(method: "str | Method | Schedule") -> tuple[str, Schedule]:
    """Return the name and the schedule of a method.

    Args:
        method: A spec, the path of a JSON file that `Schedule.save` wrote, a method, or a schedule.

    Raises:
        PruningError: If it is none of these, or `get` refuses it.
    """
    if isinstance(method, Schedule):
        return "schedule", method
    if isinstance(method, str):
        method = get(method)
    if not isinstance(method, Method):
        raise PruningError(
            f"method={method!r} is neither a spec such as 'feather', nor a JSON file, a method or a Schedule."
        )
    return str(method), method.schedule()


def available() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    load_all()
    return tuple(sorted(REGISTRY))
