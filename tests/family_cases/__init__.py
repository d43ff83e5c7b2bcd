"""A tiny random model of every family. A new family adds one row to a `SPECIMENS` list here."""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence

from _pytest.mark import ParameterSet

from family_cases.towers import unmerged
from method_cases import in_gate

SPECIMENS = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for specimen in getattr(importlib.import_module(info.name), "SPECIMENS", ()):
        SPECIMENS[specimen.name] = specimen
for specimen in SPECIMENS.values():
    specimen.refuses = {**specimen.refuses, **unmerged(specimen.name)}


def with_attention(ways: Sequence[str]) -> list[ParameterSet]:
    """Return every (specimen, attention, way) by name, for `pytest.mark.parametrize`.

    Without the mark `full`, every specimen runs one of the ways in turn. The attention implementations alternate, so
    that every way meets all of them.
    """
    return [
        in_gate(
            (place + number) % len(ways) == 0 and (place // len(ways)) % len(specimen.attention) == turn,
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
