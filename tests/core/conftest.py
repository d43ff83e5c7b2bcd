import pytest
import torch
from hypothesis import strategies as st

from feathervlm.core import (
    Chained,
    Grid,
    KeepAll,
    KeepNone,
    KNNDensity,
    LastTokenAttention,
    Random,
    RandomScore,
    Top,
    VisualLayout,
)
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria.variance import LocalVariance
from feathervlm.core.selectors.base import Fill, Intersection, Union
from feathervlm.core.selectors.clustering import TopAndClusters
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import DPP, MaxMin
from feathervlm.core.selectors.redundancy import Dedup, FarFromPivots, GreedyThreshold
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.selectors.zones import Zone

ROPE, NO_ROPE, DENSITY = LastTokenAttention(), LastTokenAttention(rope=False), KNNDensity(3)


class FakeSignals:
    def __init__(self, grids, answers):
        self.grids, self.answers, self.asked = grids, answers, []

    def read(self, signal):
        self.asked.append(signal)
        return self.answers[signal]


def make_candidates(grids, scores=None, present=None, answers=None):
    counts = torch.tensor([sum(frames * rows * cols for frames, rows, cols in sample) for sample in grids])
    mask = torch.arange(int(counts.max())) < counts[:, None]
    if scores is not None:
        answers = {ROPE.signal: torch.as_tensor(scores)}
    return Candidates(
        geometry=VisualLayout(mask, grids).geometry(),
        present=mask if present is None else torch.as_tensor(present) & mask,
        signals=FakeSignals(grids, answers or {}),
    )


def take_sample(tokens, sample):
    grids = [tokens.signals.grids[sample]]
    width = int(tokens.geometry.exists[sample].sum())
    answers = {signal: answer[sample : sample + 1, :width] for signal, answer in tokens.signals.answers.items()}
    return make_candidates(grids, present=tokens.present[sample : sample + 1, :width], answers=answers)


@st.composite
def draw_batch(draw, min_images=0, max_frames=2):
    grid = st.tuples(st.integers(1, max_frames), st.integers(1, 4), st.integers(1, 5))
    grids = draw(st.lists(st.lists(grid, min_size=min_images, max_size=3), min_size=1, max_size=3))
    levels = draw(st.sampled_from([1, 2, 5, 10**6]))  # few levels make many ties
    lost = draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = make_candidates(grids).present.shape
    present = torch.rand(shape, generator=generator) >= lost

    def answer(*size):
        values = (torch.rand(*size, generator=generator) * levels).floor() / levels - 0.5
        hidden = present if len(size) == 2 else present[..., None]
        return values.masked_fill(~hidden, float("nan"))  # absent tokens may hold anything

    answers = {ROPE.signal: answer(*shape), NO_ROPE.signal: answer(*shape), DENSITY.signals()[0]: answer(*shape, 4)}
    return make_candidates(grids, present=present, answers=answers)


KEEPS = st.floats(0.01, 1) | st.integers(1, 40)
OF = st.sampled_from(["original", "current"])
RANKED = st.builds(Top, st.sampled_from([ROPE, NO_ROPE, DENSITY, RandomScore(3)]), KEEPS, of=OF) | st.builds(
    Random, KEEPS, seed=st.integers(0, 3), of=OF
)
STRIDES = st.integers(1, 4) | st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4))
SCORES = st.sampled_from([ROPE, NO_ROPE, RandomScore(3)])
ZONES = st.builds(
    Zone,
    SCORES,
    KEEPS,
    st.sampled_from(["window", "grid", "chunk"]),
    st.integers(1, 4),
    st.sampled_from(["equal", "proportional", "softmax"]),
    st.none() | SCORES | st.just(LocalVariance(ROPE, "chunk", 3)),
    st.sampled_from(["fraction", "weight"]),
    OF,
)
DIVERSE = [
    st.builds(MaxMin, KEEPS, of=OF),
    st.builds(DPP, KEEPS, st.none() | SCORES, of=OF),
    st.builds(GreedyThreshold, SCORES, KEEPS, st.floats(-1, 1), of=OF),
    st.builds(Dedup, SCORES, KEEPS, per_round=st.integers(1, 9), of=OF),
    st.builds(FarFromPivots, RANKED, KEEPS, of=OF),
    ZONES,
]
OPEN = [
    st.builds(IQR, SCORES, st.floats(0, 2)),
    st.builds(Threshold, SCORES, st.floats(-0.5, 0.5), st.just(0.5)),
    st.builds(Dilate, RANKED),
    st.builds(TopAndClusters, RANKED, st.floats(0.01, 1), st.integers(1, 9), st.just("vision")),
    st.builds(Grid, STRIDES),
    st.just(KeepNone()),
    st.just(KeepAll()),
]


@st.composite
def one_of_a_kind(draw, kinds):
    """One kind, then one of that kind: `one_of` would flatten all and hardly ever compose. Hypothesis prints it short.

    Args:
        kinds: a function that gives the strategies.
    """
    return draw(draw(st.sampled_from(kinds())))


BUDGETED = one_of_a_kind(lambda: [RANKED, *DIVERSE])
LEAVES = one_of_a_kind(lambda: [RANKED, *DIVERSE, *OPEN])


def compose(inner):
    kinds = [
        st.builds(Union, inner, inner),
        st.builds(Union, RANKED, inner, st.just(True)) | st.builds(Union, inner, RANKED, st.just(True)),
        st.builds(Intersection, inner, inner),
        st.builds(Fill, inner, BUDGETED),
        st.builds(Chained, inner, inner),
    ]
    return one_of_a_kind(lambda: kinds)


SELECTORS = one_of_a_kind(lambda: [LEAVES, compose(LEAVES), compose(LEAVES), compose(compose(LEAVES))])


def slow_top(scores, tokens, budget, first=None):
    keep = torch.zeros_like(tokens.present)
    for sample in range(len(keep)):
        for group in range(budget.shape[1]):
            members = [
                v
                for v in range(keep.shape[1])
                if tokens.present[sample, v] and (budget.shape[1] == 1 or tokens.geometry.image[sample, v] == group)
            ]
            early = {v: first is not None and bool(first[sample, v]) for v in members}
            members.sort(key=lambda v, early=early, row=scores[sample]: (not early[v], -float(row[v]), v))
            for v in members[: int(budget[sample, group])]:
                keep[sample, v] = True
    return keep


# Session scope, because hypothesis refuses fixtures that would have to be made anew for every example.
@pytest.fixture(scope="session")
def candidates():
    return make_candidates


@pytest.fixture(scope="session")
def random_tokens():
    """Candidates with continuous random scores and features of 8 numbers, all present."""

    def make(grids, seed=0, present=None):
        generator, shape = torch.Generator().manual_seed(seed), make_candidates(grids).present.shape
        answers = {ROPE.signal: torch.rand(shape, generator=generator)}
        answers[DENSITY.signals()[0]] = torch.randn(*shape, 8, generator=generator)
        return make_candidates(grids, present=present, answers=answers)

    return make


@pytest.fixture(scope="session")
def alone():
    return take_sample


@pytest.fixture(scope="session")
def batches():
    return draw_batch


@pytest.fixture(scope="session")
def ranked():
    return RANKED


@pytest.fixture(scope="session")
def budgeted():
    return BUDGETED


@pytest.fixture(scope="session")
def selectors():
    return SELECTORS


@pytest.fixture(scope="session")
def naive_top():
    return slow_top
