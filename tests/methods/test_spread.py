"""Methods that spread what they keep, against NumPy that follows the authors' steps, in exact indices.

One fixed random picture of 7 x 7 tokens: attention of four heads in two encoder layers, [CLS] included, and features.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import PruningError, Schedule, Stage, Top, VisualLayout
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria.attention import LastTokenAttention, VisionAttention
from feathervlm.core.criteria.variance import LocalVariance
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import MaxMin
from feathervlm.core.selectors.redundancy import Dedup
from feathervlm.core.selectors.zones import Zone
from feathervlm.core.signals import Attention, EncoderAttention, Features
from feathervlm.core.spec import from_json, to_json
from feathervlm.methods import DivPrune, FastV, GreedyPrune, HiPrune, HoloV, VisPruner, get

SIDE, HEADS, DIM = 7, 4, 8
SEEDS, COUNTS = range(4), [5, 12, 30, 49]


def softmax(values):
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


class Picture:
    """Random signals of one picture, as NumPy sees them and as criteria read them."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        tokens = SIDE**2
        self.encoder = [softmax(2 * draw.standard_normal((HEADS, tokens + 1, tokens + 1))) for _ in range(3)]
        self.last = softmax(2 * draw.standard_normal((HEADS, tokens)))
        self.features = draw.standard_normal((tokens, DIM)).astype(np.float32)
        self.features[10:20] += 3 * self.features[10]  # a patch of likes

    def cls(self, layer):
        return self.encoder[layer].mean(0)[0, 1:]

    def received(self, layer):
        return self.encoder[layer].mean((0, 1))[1:]

    def read(self, signal):
        if isinstance(signal, Features):
            return torch.tensor(self.features)[None]
        if isinstance(signal, Attention):
            return torch.tensor(self.last.mean(0), dtype=torch.float32)[None]
        layer = signal.layer if isinstance(signal.layer, int) else 0
        values = self.cls(layer) if signal.source == "cls" else self.received(layer)
        return torch.tensor(values, dtype=torch.float32)[None]

    def kept(self, method):
        mask = torch.ones(1, SIDE**2, dtype=torch.bool)
        tokens = Candidates(VisualLayout(mask, [[(1, SIDE, SIDE)]]).geometry(), mask, self)
        (stage,) = method.schedule()
        return stage.select.select(tokens)[0].nonzero().flatten().tolist()


def unit(features):
    return features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=-1, keepdims=True)


def divprune(features, count):
    distance = 1 - unit(features) @ unit(features).T
    chosen = [int(np.argmax(np.sort(distance, axis=0)[1]))]
    while len(chosen) < count:
        score = distance[chosen].min(0)
        score[chosen] = -1
        chosen.append(int(np.argmax(score)))
    return sorted(chosen)


def greedyprune(attention, features, count, tau):
    similar, chosen, masked = unit(features) @ unit(features).T, [], []
    for token in np.argsort(-attention, kind="stable"):
        if len(chosen) < count:
            (masked if any(similar[token, other] > tau for other in chosen) else chosen).append(int(token))
    return sorted((chosen + masked)[:count])


def vispruner(attention, features, count, share=0.5, per_round=8):
    order = np.argsort(-attention, kind="stable")
    important, residual = order[: int(count * share)], order[int(count * share) :]
    diverse, features = count - len(important), unit(features)
    while (leave := min(per_round, len(residual) - diverse)) > 0:
        a, b = residual[::2], residual[1::2]
        closest = (features[a] @ features[b].T).max(1)
        residual = np.concatenate([a[np.argsort(-closest)[leave:]], b])
    return sorted(int(token) for token in (*important, *residual))


def holov(attention, features, count, chunks, alpha=0.09):
    parts, features = np.array_split(np.arange(len(attention)), chunks), unit(features)
    variance = np.zeros(len(attention))
    for part in parts:
        similar = features[part] @ features[part].T
        for row, token in enumerate(part):
            variance[token] = np.delete(similar[row], row).var()
    scaled = 1e3 * attention
    scores = scaled + alpha * variance * np.abs(scaled).mean() / np.abs(variance).mean()
    weights = np.array([scores[part].mean() for part in parts])
    quota = np.floor(count * weights / weights.sum()).astype(int)
    quota[np.argsort(-weights, kind="stable")[: count - quota.sum()]] += 1
    assert all(few <= len(part) for few, part in zip(quota, parts, strict=True)), "a full chunk: no oracle"
    best = [part[np.argsort(-attention[part], kind="stable")[:few]] for few, part in zip(quota, parts, strict=True)]
    return sorted(np.concatenate(best).tolist())


def hiprune(objects, registers, count, alpha):
    chosen = set()
    for anchor in np.argsort(-objects, kind="stable")[: max(int(count * alpha / 5), 1)].tolist():
        row, col = divmod(anchor, SIDE)
        around = [(row, col), (row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
        chosen |= {r * SIDE + c for r, c in around if 0 <= r < SIDE and 0 <= c < SIDE}
    for token in np.argsort(-registers, kind="stable").tolist():
        if len(chosen) < count:
            chosen.add(token)
    return sorted(chosen)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_divprune(seed, count):
    picture = Picture(seed)
    assert picture.kept(DivPrune(keep=count)) == divprune(picture.features, count)


@pytest.mark.parametrize("tau", [0.2, 0.9])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_greedyprune(seed, count, tau):
    picture = Picture(seed)
    expected = greedyprune(picture.last.mean(0), picture.features, count, tau)
    assert picture.kept(GreedyPrune(keep=count, tau=tau)) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_greedyprune_without_a_bound_is_fastv(seed):
    assert Picture(seed).kept(GreedyPrune(tau=1.0)) == Picture(seed).kept(FastV())
    assert Picture(seed).kept(GreedyPrune(tau=0.3)) != Picture(seed).kept(FastV())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_vispruner(seed, count):
    picture = Picture(seed)
    for share in (0.5, 0.8):
        expected = vispruner(picture.cls(-2), picture.features, count, share)
        assert picture.kept(VisPruner(keep=count, important=share)) == expected


@pytest.mark.parametrize("chunks", [4, 7])
@pytest.mark.parametrize("count", [5, 9, 14])
@pytest.mark.parametrize("seed", SEEDS)
def test_holov(seed, count, chunks):
    picture = Picture(seed)
    expected = holov(picture.cls(-2), picture.features, count, chunks)
    assert picture.kept(HoloV(keep=count, chunks=chunks)) == expected


def test_holov_offers_what_a_full_chunk_refuses():
    picture = Picture(0)
    picture.encoder[-2][:, 0, 1:8] *= 50
    kept = picture.kept(HoloV(keep=21, chunks=7))
    assert len(kept) == 21
    assert kept[:7] == list(range(7))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_hiprune(seed, count, alpha):
    picture = Picture(seed)
    expected = hiprune(picture.received(0), picture.received(-2), count, alpha)
    if len(expected) == count:  # else neighbours alone are too many, and the deep layer decides among them
        assert picture.kept(HiPrune(keep=count, alpha=alpha)) == expected
    assert len(picture.kept(HiPrune(keep=count, alpha=alpha))) == count


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        (DivPrune(), 56),
        (DivPrune(keep=64), 64),
        (GreedyPrune(layer=2, keep=0.5), 288),
        (VisPruner(keep=1 / 9), 64),
        (VisPruner(), 144),
        (HoloV(keep=64), 64),
        (HiPrune(keep=192), 192),
        (HiPrune(keep=1 / 3), 192),
    ],
)
def test_known_counts_of_576(method, tokens):
    assert method.schedule().tokens_per_layer([(1, 24, 24)], 32)[-1] == tokens


def test_schedules():
    cls, shallow, deep = VisionAttention(-2), VisionAttention(1 / 3, "received"), VisionAttention(-2, "received")
    assert DivPrune().schedule() == Schedule(Stage(0, MaxMin(0.098, "projected")))
    assert VisPruner(keep=64).schedule() == Schedule(Stage(0, Top(cls, 32) >> Dedup(cls, 64)))
    weight = LocalVariance(cls, "chunk", 16, 0.09)
    assert HoloV().schedule() == Schedule(Stage(0, Zone(cls, 0.25, "chunk", 16, "proportional", weight, "weight")))
    assert HiPrune(keep=192, positions="renumber").schedule() == Schedule(
        Stage(0, Dilate(Top(shallow, 3)) >> Top(deep, 192), "renumber")
    )


@pytest.mark.parametrize(
    ("method", "signals"),
    [
        (DivPrune(), {Features("projected")}),
        (GreedyPrune(rope=False), {Attention(rope=False), Features("projected")}),
        (VisPruner(), {EncoderAttention(-2), Features("vision")}),
        (HoloV(features="projected"), {EncoderAttention(-2), Features("projected")}),
        (HiPrune(), {EncoderAttention(1 / 3, "received"), EncoderAttention(-2, "received")}),
    ],
)
def test_signals(method, signals):
    assert set(method.schedule().signals()) == signals
    assert LastTokenAttention().signal == Attention()


LAYERS = st.integers(0, 80) | st.floats(0, 1, exclude_max=True)
INSIDE = st.integers(-30, 30) | st.floats(0.01, 0.99)
KEEPS, SHARES = st.floats(1e-6, 1) | st.integers(1, 3000), st.floats(0.01, 1)
SOURCES, PLACES = st.sampled_from(["vision", "projected"]), st.sampled_from(["preserve", "renumber", "stretch"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(DivPrune, LAYERS, KEEPS, SOURCES, PLACES)
    | st.builds(
        GreedyPrune, LAYERS, KEEPS, st.floats(-1, 1), st.booleans(), st.sampled_from(["visual", "all"]), SOURCES
    )
    | st.builds(VisPruner, LAYERS, KEEPS, SHARES, st.integers(1, 99), INSIDE, SOURCES, PLACES)
    | st.builds(HoloV, LAYERS, KEEPS, st.integers(1, 99), st.floats(0, 2), INSIDE, SOURCES, PLACES)
    | st.builds(HiPrune, LAYERS, KEEPS, SHARES, INSIDE, INSIDE, PLACES)
)
def test_the_written_forms_make_the_method_again(method):
    assert get(str(method)) == method
    assert from_json(to_json(method.schedule())) == method.schedule()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("divprune:keep=0", "keep=0"),
        ("divprune:features=pixels", "features='pixels'"),
        ("divprune:positions=keep", "positions='keep'"),
        ("greedyprune:tau=2", "tau=2"),
        ("greedyprune:over=text", "over='text'"),
        ("vispruner:important=0", "important=0"),
        ("vispruner:per_round=0", "per_round=0"),
        ("vispruner:encoder_layer=all", "encoder_layer='all'"),
        ("vispruner:keep=-1", "keep=-1"),
        ("holov:chunks=0", "chunks=0"),
        ("holov:alpha=-1", "alpha=-1"),
        ("hiprune:alpha=0", "alpha=0"),
        ("hiprune:object_layer=1.5", "object_layer=1.5"),
        ("hiprune:positions=shuffle", "positions='shuffle'"),
    ],
)
def test_a_bad_request_is_named(spec, named):
    with pytest.raises(PruningError) as error:
        get(spec)
    assert named in str(error.value)
