"""The written forms of schedules and methods: strings for the command line, versioned JSON for files.

A string names a method and its parameters, `feather:keep=0.3,layers=8+16`; JSON can hold any schedule. Each class is
described by its dataclass fields, so that a new criterion or selector needs no code here.
"""

import ast
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from feathervlm.core import scoring_pass, signals
from feathervlm.core.candidates import Criterion
from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.errors import PruningError
from feathervlm.core.mergers.base import Merger
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.base import Selector
from feathervlm.core.selectors.fixed import Given

VERSION = 1


def _algebra() -> dict[str, type]:
    """Return every class that JSON may name, by its name; subclasses count as soon as they are imported."""

    def subclasses(base: type) -> set[type]:
        classes = {base}
        child: type  # mypy cannot infer it here
        for child in base.__subclasses__():
            classes |= subclasses(child)
        return classes

    measured = {signals.EncoderKeys, signals.Features, signals.Keys, scoring_pass.Survivors}
    known = {
        Stage,
        *measured,
        *subclasses(Criterion),
        *subclasses(Selector),
        *subclasses(Merger),
        *subclasses(EncoderMerging),
    }
    return {cls.__name__: cls for cls in known - {Given} if not inspect.isabstract(cls)}


def to_json(schedule: Schedule) -> str:
    """Write a schedule as a JSON document with a version.

    Raises:
        PruningError: If it holds tokens that were given for one input.
    """
    return json.dumps({"feathervlm": VERSION, **_encode(schedule)}, indent=2)


def from_json(text: str) -> Schedule:
    """Read the schedule that `to_json` wrote.

    Raises:
        PruningError: If the text is not such a document, or is of another version.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise PruningError("This is not a schedule: it has too many levels.") from None
    except ValueError as error:
        raise PruningError(f"This is not JSON: {error}.") from None
    version = data.get("feathervlm") if isinstance(data, dict) else None
    if isinstance(version, bool) or version != VERSION:
        raise PruningError(
            f"This is not a feathervlm schedule of version {VERSION} (its 'feathervlm' is {version!r}); write it with "
            "Schedule.save() of this version."
        )
    schedule = {key: value for key, value in data.items() if key != "feathervlm"}
    if not _is_schedule(schedule):
        raise PruningError(
            f'A schedule document has "feathervlm", a list of "stages" and maybe "encoder", not {sorted(data)}.'
        )
    decoded: Schedule = _decode(schedule)
    return decoded


def _is_schedule(data: dict[str, Any]) -> bool:
    return set(data) - {"encoder"} == {"stages"} and isinstance(data["stages"], list)


def _encode(value: Any) -> Any:
    if isinstance(value, Schedule):
        encoder = {} if value.encoder is None else {"encoder": _encode(value.encoder)}
        return {"stages": [_encode(stage) for stage in value.stages], **encoder}
    if isinstance(value, Given):
        raise PruningError("Given tokens belong to one input and cannot be written down as a schedule.")
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "type": type(value).__name__,
            **{f.name: _encode(getattr(value, f.name)) for f in fields(value) if f.init},
        }
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    if _is_schedule(data):
        return Schedule(*map(_decode, data["stages"]), encoder=_decode(data.get("encoder")))
    known = _algebra()
    if not isinstance(data.get("type"), str) or data["type"] not in known:
        raise PruningError(f"Unknown type {data.get('type')!r}; known are {', '.join(sorted(known))}.")
    cls = known[data["type"]]
    return build(cls, {key: _decode(value) for key, value in data.items() if key != "type"}, cls.__name__)


def build(cls: type, parameters: Mapping[str, Any], name: str) -> Any:
    """Make an instance of a dataclass from named parameters.

    Raises:
        PruningError: On an unknown or missing parameter; the message lists the parameters that exist.
    """
    declared = {f.name: f for f in fields(cls) if f.init}
    for parameter in parameters:
        if parameter not in declared:
            options = f"its parameters are {', '.join(declared)}" if declared else "it has none"
            raise PruningError(f"{name} has no parameter {parameter!r}; {options}.")
    for parameter, field in declared.items():
        if field.default is MISSING and field.default_factory is MISSING and parameter not in parameters:
            raise PruningError(f"{name} needs the parameter {parameter!r}.")
    return cls(**parameters)


def split_specs(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of method specs, some of which contain commas themselves.

    A comma separates two specs unless it stands in brackets, or a parameter's name and `=` follow.

    Raises:
        PruningError: If the brackets do not match.

    >>> split_specs("none,fastv,feather:keep=0.3,stride=3,before-llm:method=(fastv:layer=3,keep=0.5)")
    ('none', 'fastv', 'feather:keep=0.3,stride=3', 'before-llm:method=(fastv:layer=3,keep=0.5)')
    """
    specs = [""]
    for part in _split(text, text):
        if specs[-1] and re.match(r"\s*\w+\s*=", part):
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return tuple(spec.strip() for spec in specs if spec.strip())


def split_joined(spec: str) -> tuple[str, ...]:
    """Split the spec of several methods at each `+` outside brackets that a method's name follows.

    >>> split_joined("tome:keep=0.6+feather:layers=8+16")
    ('tome:keep=0.6', 'feather:layers=8+16')
    """
    parts = [""]
    for part in _split(spec, spec, "+"):
        if re.match(r"\s*[a-z]", part) or not parts[-1]:
            parts.append(part)
        else:
            parts[-1] += f"+{part}"
    return tuple(parts[1:]) or ("",)


def add_parameters(spec: str, parameters: Mapping[str, Any]) -> str:
    """Append parameters to a spec.

    Args:
        spec: A method's name or a spec.
        parameters: Values by name; a string is taken as written.

    >>> add_parameters("feather:keep=0.3", {"layers": (8, 16)}), add_parameters("fastv", {})
    ('feather:keep=0.3,layers=8+16', 'fastv')
    """
    written = ",".join(f"{name}={write_value(value)}" for name, value in parameters.items())
    return f"{spec}{',' if ':' in spec else ':'}{written}" if written else spec


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec `name:key=value,key=value` into its name and parameters.

    A value is a number, true or false, a list `8+16` (or `[8,16]`), a word, or a spec of its own in parentheses.

    Raises:
        PruningError: If the text does not have that form.

    >>> parse("feather:keep=0.3,layers=8+16")
    ('feather', {'keep': 0.3, 'layers': (8, 16)})
    """
    name, colon, rest = spec.strip().partition(":")
    parameters: dict[str, Any] = {}
    if not name or (colon and not rest.strip()):
        raise PruningError(f"{spec!r} is not a method; write name or name:parameter=value,...")
    for part in _split(rest, spec) if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier() or not value.strip():
            raise PruningError(f"{part!r} in {spec!r} is not parameter=value.")
        if key.strip() in parameters:
            raise PruningError(f"{spec!r} gives {key.strip()!r} twice.")
        parameters[key.strip()] = _value(value.strip())
    return name.strip(), parameters


def _split(text: str, spec: str, at: str = ",") -> list[str]:
    """Split at a character outside brackets; `spec` is named in the error."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            break
        if character == at and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise PruningError(f"The brackets in {spec!r} do not match.")
    return parts


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[0] == "(" and text[-1] == ")" and text[1:2].isalpha():
        return text[1:-1]  # the spec of another method
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        parts = text.split("+")
        return tuple(_value(part) for part in parts) if len(parts) > 1 and all(parts) else text
    return tuple(value) if isinstance(value, list) else value


def write_value(value: Any) -> str:
    """Write a parameter value as `parse` reads it; except for nested specs it needs no quotes in a shell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "+".join(map(write_value, value)) if len(value) > 1 else str(list(value))
    return str(value)
