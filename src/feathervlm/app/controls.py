"""The controls of a method, made from the fields of its dataclass; the spec is what they read and write."""

import inspect
import re
from dataclasses import MISSING, Field, dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from feathervlm.core.errors import PruningError
from feathervlm.core.spec import parse
from feathervlm.methods import Combined, Method, get
from feathervlm.methods.base import default_of, written
from feathervlm.methods.lookup import ScheduleFile

Kind = Literal["switch", "choice", "slider", "text"]
NONE = "none"
"""Choice that stands for no value."""


@dataclass(frozen=True)
class Control:
    """One parameter of a method.

    Attributes:
        name: Name of the parameter.
        kind: "switch" for a bool, "choice" for one of several words, "slider" for the budget, "text" for numbers,
            layers, lists and methods as they stand in a spec.
        value: Value: a bool, a word, a share, or a text.
        about: What the docstring says about it.
        choices: The words of a choice.
    """

    name: str
    kind: Kind
    value: Any
    about: str = ""
    choices: tuple[str, ...] = ()


def controls(spec: str) -> list[Control]:
    """Return the controls of a method with the values of a spec; a schedule in a file has none.

    Those of joined methods have the number of their method before their name: `2.keep`.

    Raises:
        PruningError: There is no such method or parameter.
    """
    method = get(spec)
    if isinstance(method, ScheduleFile):
        return []
    if isinstance(method, Combined):
        parts = enumerate(method.methods, 1)
        return [replace(one, name=f"{at}.{one.name}") for at, part in parts for one in controls(str(part))]
    hints, about = get_type_hints(type(method)), descriptions(type(method))
    return [_control(method, field, hints[field.name], about.get(field.name, "")) for field in fields(method)]


def changed(spec: str, name: str, value: Any) -> str:
    """Return a spec with another value of one parameter; a value equal to the default is left out.

    Args:
        spec: The spec.
        name: Name of the parameter.
        value: Value of its control. The default is restored by "none" and by a text without characters.

    Raises:
        PruningError: The value is not one of this parameter.
    """
    method = get(spec)
    if isinstance(method, Combined):
        number, _, name = name.partition(".")
        parts = [str(part) for part in method.methods]
        parts[int(number) - 1] = changed(parts[int(number) - 1], name, value)
        return str(get("+".join(parts)))
    values = {field.name: written(getattr(method, field.name)) for field in _changed_fields(method)}
    field = next(field for field in fields(method) if field.name == name)
    text = written(value) if not isinstance(value, str) else value.strip()
    optional = NoneType in get_args(get_type_hints(type(method))[name])
    if not text or (text == NONE and optional):
        values.pop(name, None)
    else:
        values[name] = f"({text})" if _is_method(field) and text[0] != "(" else text
        if set(parse(f"{method.name}:{name}={values[name]}")[1]) != {name}:
            raise PruningError(f"{name}={text!r} is more than one value; write one, or a list such as 4+9.")
    joined = ",".join(f"{key}={values[key]}" for key in (one.name for one in fields(method)) if key in values)
    return str(get(f"{method.name}:{joined}" if joined else method.name))


def descriptions(kind: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each parameter.

    >>> from feathervlm.methods import FastV
    >>> descriptions(FastV)["layer"]
    'Tokens leave before this layer.'
    """
    lines = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _control(method: Method, field: "Field[Any]", hint: Any, about: str) -> Control:
    value = getattr(method, field.name)
    inner = [part for part in get_args(hint) if part is not NoneType]
    words = get_args(hint) if get_origin(hint) is Literal else get_args(inner[0]) if _one_literal(inner) else ()
    if hint is bool:
        return Control(field.name, "switch", value, about)
    if words:
        options = (NONE, *words) if NoneType in get_args(hint) else words
        return Control(field.name, "choice", NONE if value is None else value, about, tuple(map(str, options)))
    if field.name == method.budget_parameter and isinstance(value, float) and 0 < value <= 1:
        return Control(field.name, "slider", value, about)
    return Control(field.name, "text", "" if value is None else written(value), about)


def _one_literal(inner: list[Any]) -> bool:
    return len(inner) == 1 and get_origin(inner[0]) is Literal


def _is_method(field: "Field[Any]") -> bool:
    return field.type in (Method, Method | None, "Method", "Method | None")


def _changed_fields(method: Method) -> list["Field[Any]"]:
    return [
        field
        for field in fields(method)
        if default_of(field) is MISSING or getattr(method, field.name) != default_of(field)
    ]
