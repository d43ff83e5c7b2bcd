"""A tiny random model of every family. A new family adds one row to a `FAMILY_CASES` list here."""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence

from _pytest.mark import ParameterSet

from family_cases.unmergeable_encoders import refuses_encoder_merging
from method_cases import in_gate, selected

FAMILY_CASES = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for case in getattr(importlib.import_module(info.name), "FAMILY_CASES", ()):
        FAMILY_CASES[case.name] = case
for case in FAMILY_CASES.values():
    case.refuses = {**case.refuses, **refuses_encoder_merging(case.name)}


def with_attention(ways: Sequence[str]) -> list[ParameterSet]:
    """Return every (case, attention, way) by name, for `pytest.mark.parametrize`.

    Without the mark `full`, every case runs one of the ways in turn. The attention implementations alternate, so
    that every way meets all of them.
    """
    return selected(
        in_gate(
            (place + number) % len(ways) == 0 and (place // len(ways)) % len(case.attention) == turn,
            name,
            attention,
            way,
        )
        for place, (name, case) in enumerate(FAMILY_CASES.items())
        for turn, attention in enumerate(case.attention)
        for number, way in enumerate(ways)
    )


def with_some(values: Iterable[object], gate: Iterable[object], share: int) -> list[ParameterSet]:
    """Return every (case, value) for `pytest.mark.parametrize`.

    Without the mark `full` are all values on the first case, and one in `share` of `gate` on the others.

    Args:
        values: what every case is tried with.
        gate: those of the values that the gate tries on all cases in turn.
        share: how many of them a case skips from one to the next.
    """
    turns = {value: number for number, value in enumerate(gate)}
    return selected(
        in_gate(place == 0 or (value in turns and (place + turns[value]) % share == 0), name, value)
        for place, name in enumerate(FAMILY_CASES)
        for value in values
    )
