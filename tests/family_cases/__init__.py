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

WAYS = ["feather", "uniform-0", "random", "pool", "shuffled", "cut", "ivc-prune"]
"""Names of the ways to prune that laws of families try."""


def with_attention(ways: Sequence[str]) -> list[ParameterSet]:
    """Return every (case, attention, way) by name, for `pytest.mark.parametrize`.

    Without the mark `full`, every case runs one way with one attention implementation: the same for all laws that have
    this way, so that they share its forwards. Both alternate from case to case, so that every way meets all of them.
    """
    return selected(
        in_gate(way == _way_in_gate(place, ways) and attention == case.attention_in_gate(place), name, attention, way)
        for place, (name, case) in enumerate(FAMILY_CASES.items())
        for attention in case.attention
        for way in ways
    )


def _way_in_gate(place: int, ways: Sequence[str]) -> str:
    usual = WAYS[place % len(WAYS)]
    return usual if usual in ways else ways[place // len(WAYS) % len(ways)]


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
