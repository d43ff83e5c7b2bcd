"""The shared test table: every method, at layers that a six-layer model has.

A new method adds one row and is then held to every law: by `pairs` on one model, and on all models if it is the first
to use the engine in its way.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import pytest
from _pytest.mark import ParameterSet

from feathervlm import Schedule
from feathervlm import methods as m
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of, tokens_of


@dataclass(frozen=True)
class MethodCase:
    """One method under test.

    Args:
        method: at layers that a model of six has.
        everything: the same with parameters that keep all tokens; None for a method that cannot.
        published: the layers of its paper in a model of 32, in one row of each method.
    """

    method: m.Method
    everything: m.Method | None = None
    published: tuple[int, ...] | None = None


ROWS = {
    "feather": MethodCase(
        m.Feather(layers=(2, 4), keep=0.4), published=(8, 16), everything=m.Feather(layers=(2, 4), keep=1.0)
    ),
    "feather-fixed": MethodCase(
        m.Feather(layers=(2, 4), keep=0.4, fixed=True), everything=m.Feather(layers=(2, 4), keep=1.0, fixed=True)
    ),
    "fastv": MethodCase(m.FastV(layer=2), published=(3,), everything=m.FastV(layer=2, keep=1.0)),
    "fastv-all": MethodCase(m.FastV(layer=2, over="all"), everything=m.FastV(layer=2, keep=1.0, over="all")),
    "fastv-no-rope": MethodCase(m.FastV(layer=3, rope=False)),
    "uniform-0": MethodCase(m.Uniform(layer=0), published=(3,), everything=m.Uniform(layer=0, stride=1)),
    "knn": MethodCase(
        m.KNN(layer=2, count=6, features="projected"),
        published=(3,),
        everything=m.KNN(layer=2, count=10_000, features="projected"),
    ),
    "ensemble": MethodCase(m.Ensemble(layer=1), published=(3,), everything=m.Ensemble(layer=1, keep=1.0)),
    "fastervlm": MethodCase(m.FasterVLM(), published=(0,), everything=m.FasterVLM(keep=1.0)),
    "pyramiddrop": MethodCase(
        m.PyramidDrop(layers=(1, 3, 4)), published=(8, 16, 24), everything=m.PyramidDrop(layers=(1, 3, 4), keep=1.0)
    ),
    "pyramiddrop-baseline": MethodCase(
        m.PyramidDrop(layers=(1, 3, 4), form="baseline"),
        everything=m.PyramidDrop(layers=(1, 3, 4), keep=1.0, form="baseline"),
    ),
    "random": MethodCase(m.RandomKeep(layer=2), published=(3,), everything=m.RandomKeep(layer=2, keep=1.0)),
    "sparsevlm": MethodCase(
        m.SparseVLM(layers=(2, 3, 5)), published=(3, 7, 16), everything=m.SparseVLM(layers=(2, 3, 5), keep=1.0)
    ),
    "sparsevlm-plus": MethodCase(
        m.SparseVLM(layers=(2, 3, 5), table=(0.6, 0.4, 0.2), plus=True),
        everything=m.SparseVLM(layers=(2, 3, 5), keep=1.0, plus=True),
    ),
    "pool": MethodCase(m.AveragePool(), published=(0,), everything=m.AveragePool(stride=1)),
    "pool-later": MethodCase(m.AveragePool(layer=3, stride=4), everything=m.AveragePool(layer=3, stride=1)),
    "visionzip": MethodCase(
        m.VisionZip(dominant=0.3, contextual=0.15),
        published=(0,),
        everything=m.VisionZip(dominant=1.0, contextual=0.15),
    ),
    "vscan": MethodCase(
        m.VScan(layers=(0, 1), keep=0.5, shallow=0, window=2),
        published=(0, 16),
        everything=m.VScan(layers=(0, 3), keep=1.0, then=1.0, shallow=0, window=2),
    ),
    "vscan-qwen": MethodCase(
        m.VScan(layers=(1, 4), keep=0.4, form="qwen", shallow=0),
        everything=m.VScan(layers=(1, 4), keep=1.0, then=1.0, form="qwen", shallow=0),
    ),
    "prumerge": MethodCase(m.PruMerge(layer=1), published=(0,)),
    "prumerge-plus": MethodCase(m.PruMerge(plus=True)),
    "divprune": MethodCase(m.DivPrune(keep=0.25), published=(0,), everything=m.DivPrune(keep=1.0)),
    "greedyprune": MethodCase(
        m.GreedyPrune(layer=4, tau=0.3), published=(3,), everything=m.GreedyPrune(layer=4, keep=1.0)
    ),
    "vispruner": MethodCase(m.VisPruner(), published=(0,), everything=m.VisPruner(keep=1.0)),
    "holov": MethodCase(m.HoloV(chunks=4), published=(0,), everything=m.HoloV(keep=1.0)),
    "hiprune": MethodCase(m.HiPrune(), published=(0,), everything=m.HiPrune(keep=1.0)),
    "dart": MethodCase(
        m.DART(layer=4, keep=0.4, pivots=3, words=2), published=(2,), everything=m.DART(layer=4, keep=1.0)
    ),
    "cdpruner": MethodCase(m.CDPruner(), published=(0,), everything=m.CDPruner(keep=1.0)),
    "star": MethodCase(m.STAR(layers=(0, 3)), published=(0, 16), everything=m.STAR(layers=(0, 3), keep=1.0, then=1.0)),
    "ivc-prune": MethodCase(m.IVCPrune(layer=3, keep=0.4), published=(16,), everything=m.IVCPrune(layer=3, keep=1.0)),
    "ivc-prune-later": MethodCase(m.IVCPrune(layer=5, keep=6, share=2)),
    "nuwa": MethodCase(
        m.Nuwa(layers=(0, 4), keep=0.5, then=0.5),
        published=(0, 16),
        everything=m.Nuwa(layers=(0, 4), keep=1.0, then=1.0, pillars=0.0),
    ),
    "topv": MethodCase(m.TopV(layer=2), published=(3,), everything=m.TopV(layer=2, keep=1.0)),
    "v2drop": MethodCase(
        m.V2Drop(layers=(1, 3, 5)), published=(3, 17, 22), everything=m.V2Drop(layers=(1, 3, 5), keep=1.0, last=1.0)
    ),
    "shuffled-positions": MethodCase(m.ShuffledPositions(), published=(0,)),
    "shuffled-feather": MethodCase(m.ShuffledPositions(m.Feather(layers=(2, 4), keep=0.4), seed=1)),
    "before-llm": MethodCase(
        m.BeforeLLM(m.Feather(layers=(1, 3), keep=0.5)),
        published=(0,),
        everything=m.BeforeLLM(m.FastV(layer=2, keep=1.0)),
    ),
    "tome": MethodCase(m.ToMe(keep=0.6), published=(0,), everything=m.ToMe(keep=1.0)),
    "ailurus": MethodCase(m.AiluRus(encoder_layer=0), published=(0,), everything=m.AiluRus(encoder_layer=0, keep=1.0)),
    "text-only": MethodCase(m.TextOnly(), published=(0,)),
    "combined": MethodCase(
        m.Combined((m.ToMe(keep=0.8), m.DivPrune(keep=0.5), m.Feather(layers=(2, 4), keep=0.3))),
        everything=m.Combined((m.ToMe(keep=1.0), m.DivPrune(keep=1.0), m.Feather(layers=(2, 4), keep=1.0))),
    ),
}

METHODS = {name: row.method for name, row in ROWS.items()}
KEEP_ALL = {name: row.everything for name, row in ROWS.items() if row.everything is not None}
PUBLISHED_LAYERS = {row.method.name: row.published for row in ROWS.values() if row.published is not None}


IMAGE = picture_of((1, 24, 24))


def usage(schedule: Schedule) -> Hashable:
    """Return what of the engine a schedule uses: signals, mergers, positions, caches, encoder, and known counts."""
    image = ImageTokens(IMAGE, float(tokens_of(IMAGE)))
    return (
        frozenset(type(signal) for signal in schedule.signals()),
        frozenset(type(stage.merge) for stage in schedule),
        frozenset(stage.positions for stage in schedule),
        any(stage.cache == "all" for stage in schedule),
        type(schedule.encoder),
        all(stage.select.size(image) is not None for stage in schedule),
    )


def representatives(names: Iterable[str] = METHODS) -> list[str]:
    """Return the first of these rows that uses the engine in each way."""
    return list({usage(METHODS[name].schedule()): name for name in reversed(list(names))}.values())[::-1]


def pairs(names: Iterable[str], subjects: Sequence[str], kinds: Sequence[str] = ()) -> list[ParameterSet]:
    """Return every (subject, kind, method), or (subject, method), for `pytest.mark.parametrize`.

    Without the mark `full` are every method on the first subject of the first kind, and representatives on one in three
    of the subjects in turn, where the kinds alternate, so that every subject meets a third of the representatives.

    Args:
        names: rows of the shared table.
        subjects: models.
        kinds: attention implementations.
    """
    names, cases = list(names), []
    chosen = representatives(names)
    for (place, subject), (turn, kind), name in product(enumerate(subjects), enumerate(kinds or [None]), names):
        first = place == turn == 0
        number = chosen.index(name) if name in chosen else None
        alternate = number is not None and (number + place) % 3 == 0 and (number // 3) % len(kinds or [None]) == turn
        values = [value for value in (subject, kind, name) if value is not None]
        cases.append(in_gate(first or alternate, *values))
    return selected(cases)


def crossed(*axes: Iterable[object], share: int = 2) -> list[ParameterSet]:
    """Return the product of axes for `pytest.mark.parametrize`; one in `share` of them is without the mark `full`.

    The sum of a combination's places in the axes decides, so that every value of every axis is among them.
    """
    return selected(
        in_gate(sum(place for place, _ in combination) % share == 0, *(value for _, value in combination))
        for combination in product(*(list(enumerate(axis)) for axis in axes))
    )


GATE_ONLY = False
"""Whether only the gate is run, so that its other combinations need not be collected; `conftest.py` sets it."""


def selected(cases: Iterable[ParameterSet]) -> list[ParameterSet]:
    """Return the cases that can run."""
    return [case for case in cases if not (GATE_ONLY and case.marks)]


def in_gate(gate: bool, *values: object) -> ParameterSet:
    """Return a set of parameters that carries the mark `full` unless it belongs to the gate."""
    return pytest.param(
        *values,
        id="-".join(getattr(value, "name", getattr(value, "__name__", str(value))) for value in values),
        marks=[] if gate else [pytest.mark.full],
    )
