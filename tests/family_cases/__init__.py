"""A tiny random model of every family. A new family adds one row to a `SPECIMENS` list here."""

import importlib
import pkgutil
from collections.abc import Iterable

from _pytest.mark import ParameterSet

from family_cases.towers import unmerged
from method_cases import in_gate

SPECIMENS = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for specimen in getattr(importlib.import_module(info.name), "SPECIMENS", ()):
        SPECIMENS[specimen.name] = specimen
for specimen in SPECIMENS.values():
    specimen.refuses = {**specimen.refuses, **unmerged(specimen.name)}


def with_attention(ways: Iterable[str], share: int = 3) -> list[ParameterSet]:
    """Return every (specimen, attention, way) by name, for `pytest.mark.parametrize`.

    Without the mark `full`, the first way runs on every specimen and the others on one specimen in `share`. The
    attention implementations alternate, so that every way meets all of them.
    """
    return [
        in_gate(
            (place + number) % len(specimen.attention) == turn and (number == 0 or (place + number) % share == 0),
            name,
            attention,
            way,
        )
        for place, (name, specimen) in enumerate(SPECIMENS.items())
        for turn, attention in enumerate(specimen.attention)
        for number, way in enumerate(ways)
    ]


def with_some(values: Iterable[object], gate: Iterable[object], share: int) -> list[ParameterSet]:
    """Return every (specimen, value) for `pytest.mark.parametrize`.

    Without the mark `full` are all values on the first specimen, and one in `share` of `gate` on the others.

    Args:
        values: what every specimen is tried with.
        gate: those of the values that the gate tries on all specimens in turn.
        share: how many of them a specimen skips from one to the next.
    """
    turns = {value: number for number, value in enumerate(gate)}
    return [
        in_gate(place == 0 or (value in turns and (place + turns[value]) % share == 0), name, value)
        for place, name in enumerate(SPECIMENS)
        for value in values
    ]
