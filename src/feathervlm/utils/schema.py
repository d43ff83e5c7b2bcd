"""Rows of data files: fields with types and ranges, which pydantic checks, and words for what does not fit."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model

SHOWN = 5
"""Number of problems of a file that are described; the others are counted."""

Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""A text that says something."""
Number = Annotated[int, Field(ge=0)]
"""A whole number from 0 on; true and false are none."""
Flag = Annotated[int, Field(ge=0, le=1)]
"""0 or 1."""
Four = Annotated[list[float], Field(min_length=4, max_length=4)]
"""Four finite numbers."""


class AnnotationRow(BaseModel):
    """Base of the rows of annotation files; no value is converted, and fields that no task reads are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def record(**fields: Any) -> Any:
    """Return the type of rows with these fields, by name with their types; mypy knows no types made like that."""
    kinds: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
    return create_model("Row", __base__=AnnotationRow, **kinds)


def records(kind: Any) -> Any:
    """Return the type of lists of rows."""
    return list[kind]


def records_by_name(kind: Any) -> Any:
    """Return the type of rows by name."""
    return dict[Text, kind]


People: Any = Annotated[records(record(answer=str)), Field(min_length=1)]
"""The answers of people, at least one."""


def problems(error: ValidationError, must_be: Mapping[str, str] | None = None, raw: Any = None) -> list[str]:
    """Return what is wrong, one entry for each value.

    Args:
        error: What pydantic found.
        must_be: Description of the values of fields, by name, in place of pydantic's words.
        raw: What was checked, by field; only needed with `must_be`.
    """
    found: dict[str, None] = {}
    for one in error.errors(include_url=False, include_context=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]).lstrip(".")
        field, message = str(one["loc"][0]) if one["loc"] else "", one["msg"]
        if one["type"] == "missing":
            found[f"no {place!r}"] = None
        elif one["type"] == "extra_forbidden":
            found[f"unknown key {short(place)}"] = None
        elif one["type"] == "string_pattern_mismatch" and not str(one["input"]).strip():
            found[f"{(field if must_be else place)!r} is empty"] = None
        elif one["type"] == "value_error":
            found[message.removeprefix("Value error, ")] = None
        elif one["type"] == "json_invalid":
            found[message.replace("Invalid JSON", "no valid JSON")] = None
        elif must_be and field in must_be:
            found[f"{field}={short(raw[field])} must be {must_be[field]}"] = None
        else:
            found[f"{place}={short(one['input'])} {_should(message)}".strip()] = None
    return list(found)


def listed(found: list[str]) -> str:
    """Return problems in one line, the first ones in words."""
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join(found[:SHOWN] + more)


def short(value: Any, ends: bool = False) -> str:
    """Return a value as it is written in Python, cut where it is long.

    Args:
        value: The value.
        ends: Whether its end tells most, as that of a path.
    """
    text = repr(value)
    if len(text) <= 80:
        return text
    return f"...{text[-77:]}" if ends else f"{text[:77]}..."


def _should(message: str) -> str:
    """Return the words of pydantic as the end of a sentence that began with the value."""
    return message[message.index(" should ") + 1 :] if " should " in message else f"is wrong: {message}"
