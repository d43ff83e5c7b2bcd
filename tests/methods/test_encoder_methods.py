"""VisionZip, VScan and PruMerge against slow references in NumPy, from queries and keys to merged vectors."""

import math

import numpy as np
import pytest
import torch

from feathervlm.core import LastTokenAttention, PruningError, Schedule, Stage, Top, VisualLayout
from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria.attention import VisionAttention
from feathervlm.core.layout import picture_of
from feathervlm.core.mergers.nearest import Nearest, Neighbors
from feathervlm.core.selectors.thresholds import IQR
from feathervlm.core.signals import EncoderAttention, EncoderKeys, Features
from feathervlm.core.spec import from_json, to_json
from feathervlm.engine.vision.probe import received, undivided
from feathervlm.methods import PruMerge, VisionZip, VScan, get
from feathervlm.methods.prumerge import Supplemented
from feathervlm.methods.visionzip import Sampled
from feathervlm.methods.vscan import LocalScan

SIDE, HEADS, DIM = 7, 4, 8
N = SIDE**2


class Encoder:
    """Queries and keys of [CLS] and 7 x 7 patches in every layer, and the embeddings that come of them."""

    def __init__(self, seed, images=1, side=SIDE):
        self.generator = torch.Generator().manual_seed(seed)
        self.images, self.n, self.layers = images, side**2, {}
        self.embeddings = self.random(images * self.n, 16)

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def layer(self, index):
        """Of every image: (images, heads, 1 + patches, dim) each."""
        if index not in self.layers:
            shape = (self.images, HEADS, 1 + self.n, DIM)
            self.layers[index] = (1.5 * self.random(*shape), self.random(*shape))
        return self.layers[index]

    def read(self, signal):
        """As the engine measures it: (1, visual, ...)."""
        if isinstance(signal, Features):
            return self.embeddings[None]
        query, key = self.layer(signal.layer)
        if isinstance(signal, EncoderKeys):
            keys = undivided(key)[:, 0] if signal.heads == "joint" else key.mean(1)
            return keys[:, 1:].flatten(0, 1)[None]
        if signal.heads == "joint":
            query, key = undivided(query), undivided(key)
        seen = received(query, key, None, query.shape[-1] ** -0.5, signal.source == "cls")
        return seen[:, 1:].flatten()[None]

    def tokens(self):
        side = math.isqrt(self.n)
        layout = VisualLayout(torch.ones(1, self.images * self.n, dtype=torch.bool), [[(1, side, side)] * self.images])
        place = layout.geometry()
        return Candidates(place, place.exists, self)

    def run(self, method):
        """The tokens that the first stage keeps, where each goes, and what becomes of the embeddings."""
        stage, tokens = next(iter(method.schedule())), self.tokens()
        kept = stage.select.select(tokens)
        groups = stage.merge.groups(tokens, kept)
        return (
            kept[0].nonzero()[:, 0].tolist(),
            groups[0],
            stage.merge.combine(self.embeddings[None], groups, tokens)[0],
        )


def softmax(logits):
    parts = np.exp(logits - logits.max(-1, keepdims=True))
    return parts / parts.sum(-1, keepdims=True)


def maps(encoder, layer, image):
    """Attention of every head, by NumPy: (heads, 1 + patches, 1 + patches), and the keys."""
    query, key = (np.asarray(each[image], dtype=np.float64) for each in encoder.layer(layer))
    return np.stack([softmax(q @ k.T / math.sqrt(DIM)) for q, k in zip(query, key, strict=True)]), key


def best(scores, count, among):
    return sorted(sorted(among, key=lambda token: (-scores[token], token))[:count])


def likest(vectors, token, among):
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return max(among, key=lambda other: (unit[token] @ unit[other], -other))


def naive_visionzip(encoder, image, dominant, contextual):
    weights, key = maps(encoder, -2, image)
    scores, keys = weights[:, 0, 1:].sum(0), key.mean(0)[1:]
    states = np.asarray(encoder.embeddings, dtype=np.float64)[image * N : (image + 1) * N]
    top = best(scores, dominant, range(N))
    rest = [token for token in range(N) if token not in top]
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    merged, went = {token: states[token] for token in top}, {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            went[likest(keys, token, targets)].append(token)
    for target, others in went.items():
        merged[target] = states[target] + (np.mean([states[other] for other in others], 0) if others else 0)
    return merged


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("dominant", "contextual"), [(14, 5), (0.21, 0.04), (0.5, 20), (40, 30)])
def test_visionzip_by_hand(seed, dominant, contextual):
    encoder = Encoder(seed, images=2)
    kept, groups, merged = encoder.run(VisionZip(dominant=dominant, contextual=contextual))
    counts = [int(N * share) if isinstance(share, float) else share for share in (dominant, contextual)]
    expected = {}
    for image in range(2):
        by_hand = naive_visionzip(encoder, image, *counts)
        assert len(by_hand) == min(sum(counts), N)
        expected |= {image * N + token: state for token, state in by_hand.items()}
    assert kept == sorted(expected)
    np.testing.assert_allclose(merged[kept], np.stack([expected[token] for token in kept]), atol=1e-5)
    assert (groups >= 0).all()


def test_visionzip_leaves_dominant_tokens_as_they_are_and_sums_onto_the_others():
    encoder = Encoder(0)
    method = VisionZip(dominant=14, contextual=5)
    scores = encoder.read(EncoderAttention(-2))[0]
    dominant = set(scores.topk(14).indices.tolist())
    kept, groups, merged = encoder.run(method)
    for token in kept:
        members = (groups == token).nonzero()[:, 0].tolist()
        if token in dominant:
            assert members == [token]
            assert torch.equal(merged[token], encoder.embeddings[token])
        else:
            others = [member for member in members if member != token]
            wanted = encoder.embeddings[token] + encoder.embeddings[others].mean(0)
            torch.testing.assert_close(merged[token], wanted)
    encoder.embeddings = torch.ones_like(encoder.embeddings)
    lengths = encoder.run(method)[2].mean(-1)
    assert set(lengths[sorted(dominant)].tolist()) == {1.0}
    assert lengths[[token for token in kept if token not in dominant]].tolist() == pytest.approx([2.0] * 5)


@pytest.mark.parametrize(("pair", "kept"), [((162, 30), 192), ((108, 20), 128), ((54, 10), 64)])
def test_visionzip_counts_of_the_paper(pair, kept):
    method = VisionZip(dominant=pair[0], contextual=pair[1])
    assert method.schedule().tokens_per_layer([(1, 24, 24)], 32) == [kept] * 32
    encoder = Encoder(0, side=24)
    assert len(encoder.run(method)[0]) == kept
    (stage,) = method.schedule()
    assert stage.select.size(ImageTokens(picture_of((1, 24, 24)), 576)) == kept


def naive_scan(encoder, image, total, form, window, shallow, deep):
    side, offset = SIDE, image * N
    row = 0 if form == "llava" else slice(None)
    scores = [
        maps(encoder, layer, image)[0][:, row, 1:].reshape(HEADS, -1, N).mean((0, 1)) for layer in (shallow, deep)
    ]
    across = max(1, side // window)

    def place(token):
        return min(token // side // window, across - 1), min(token % side // window, across - 1)

    windows = {key: [t for t in range(N) if place(t) == key] for key in {place(t) for t in range(N)}}
    half, local = total // 2, []
    if form == "llava":
        for members in windows.values():
            local += best(scores[0], half // len(windows), members)
    else:
        taken, cap = dict.fromkeys(windows, 0), math.ceil(half / len(windows))
        for token in sorted(range(N), key=lambda token: (-scores[0][token], token)):
            if len(local) < half and taken[place(token)] < cap:
                local.append(token)
                taken[place(token)] += 1
    everywhere = best(scores[1], total - len(local), [token for token in range(N) if token not in local])
    chosen = sorted(local + everywhere)
    states = np.asarray(encoder.embeddings, dtype=np.float64)[offset : offset + N]
    went = {target: [states[target]] for target in chosen}
    for token in range(N):
        if token not in went:
            went[likest(states, token, chosen)].append(states[token])
    return {offset + target: np.mean(members, 0) for target, members in went.items()}, local


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["llava", "qwen"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("keep", [0.5, 18, 13])
def test_vscan_by_hand(seed, form, window, keep):
    encoder, total = Encoder(seed, images=2), int(keep * N) if isinstance(keep, float) else keep
    kept, _, merged = encoder.run(VScan(keep=keep, form=form, window=window, shallow=5, deep=-2))
    expected = {}
    for image in range(2):
        by_hand, local = naive_scan(encoder, image, total, form, window, 5, -2)
        assert len(by_hand) == total
        assert form == "llava" or len(local) == total // 2
        expected |= by_hand
    assert kept == sorted(expected)
    np.testing.assert_allclose(merged[kept], np.stack([expected[token] for token in kept]), atol=1e-5)


def test_vscan_keeps_three_of_every_window_of_llava_for_an_average_of_64():
    encoder, method = Encoder(1, side=24), VScan()
    tokens = encoder.tokens()
    local = method.schedule().stages[0].select.a.select(tokens)[0].view(4, 6, 4, 6)
    assert local.sum((1, 3)).tolist() == [[3] * 4] * 4
    assert len(encoder.run(method)[0]) == 96
    assert method.schedule().average_tokens([(1, 24, 24)], 32) == 64
    assert method.schedule().tokens_per_layer([(1, 24, 24)], 32) == [96] * 16 + [32] * 16


def test_vscan_averages_leave_what_is_equal_everywhere():
    encoder = Encoder(2)
    kept, _, merged = Encoder.run(encoder, VScan(keep=0.3, window=3, shallow=5))
    encoder.embeddings = torch.full_like(encoder.embeddings, 3.0)
    flat = encoder.run(VScan(keep=0.3, window=3, shallow=5))
    assert flat[0] == kept
    torch.testing.assert_close(flat[2][kept], encoder.embeddings[kept])
    assert not torch.equal(merged[kept], encoder.embeddings[kept])


def test_windows_count_frames_and_images_of_any_shape_apart():
    grids = [[(2, 5, 9), (1, 2, 3)], [(1, 8, 8)]]
    layout = VisualLayout(torch.tensor([[True] * 96, [True] * 64 + [False] * 32]), grids)
    place = layout.geometry()

    class Scores:
        def read(self, signal):
            return torch.rand(2, 96, generator=torch.Generator().manual_seed(0))

    scan = LocalScan(VisionAttention(), 0.5, 4)
    chosen = scan.select(Candidates(place, place.exists, Scores()))
    # 2 frames of 1 x 2 windows, 22 // 4 of each; one window of 2 x 3; 2 x 2 windows, 16 // 4 of each.
    assert chosen[0, :90].view(2, 5, 9)[:, :, :4].sum((1, 2)).tolist() == [5, 5]
    assert chosen[0, :90].view(2, 5, 9)[:, :, 4:].sum((1, 2)).tolist() == [5, 5]
    assert int(chosen[0, 90:].sum()) == 1
    assert chosen[1, :64].view(2, 4, 2, 4).sum((1, 3)).tolist() == [[4, 4], [4, 4]]
    assert not chosen[1, 64:].any()


def naive_prumerge(encoder, image, plus, neighbors):
    query, key = (np.asarray(each[image], dtype=np.float64) for each in encoder.layer(-1))
    query, key = (each.transpose(1, 0, 2).reshape(1 + N, HEADS * DIM) for each in (query, key))
    scores, keys = softmax(query[0] @ key.T / math.sqrt(HEADS * DIM))[1:], key[1:]
    lower, upper = np.percentile(scores, [25, 75])
    outliers = [token for token in range(N) if scores[token] > upper + 1.5 * (upper - lower)]
    kept = set(outliers) or {int(scores.argmax())}
    if plus:
        step = N // len(kept)
        kept |= set(range(step // 6, N - 1, max(step // 3, 1)))
    states = np.asarray(encoder.embeddings, dtype=np.float64)[image * N : (image + 1) * N]
    merged = {}
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    for token in kept:
        others = sorted((t for t in range(N) if t != token), key=lambda t: (-(unit[t] @ unit[token]), t))[:neighbors]
        merged[image * N + token] = states[token] + sum(scores[t] * states[t] for t in others)
    return merged, outliers


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("neighbors", [32, 5])
@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_by_hand(seed, plus, neighbors):
    encoder = Encoder(seed, images=2)
    kept, groups, merged = encoder.run(PruMerge(plus=plus, neighbors=neighbors))
    expected, found = {}, 0
    for image in range(2):
        by_hand, outliers = naive_prumerge(encoder, image, plus, neighbors)
        expected, found = expected | by_hand, found + len(outliers)
    assert found > 1
    assert kept == sorted(expected)
    np.testing.assert_allclose(merged[kept], np.stack([expected[token] for token in kept]), atol=1e-5)
    assert set(groups.tolist()) <= {-1, *kept}
    assert neighbors == 32 or plus or -1 in groups


def test_prumerge_plus_keeps_about_a_quarter_of_576():
    encoder = Encoder(3, side=24)
    outliers, both = (len(encoder.run(PruMerge(plus=plus))[0]) for plus in (False, True))
    step = 576 // outliers
    assert outliers < both <= outliers + len(range(step // 6, 575, step // 3))
    whole = ImageTokens(picture_of((1, 24, 24)), 576)
    typical = Supplemented(IQR(VisionAttention(-1, heads="joint"))).expected(whole)
    assert 0.19 < typical / 576 < 0.25


def test_a_picture_without_outliers_keeps_its_best_token():
    encoder = Encoder(0)
    encoder.layers[-1] = tuple(torch.zeros(1, HEADS, 1 + N, DIM) for _ in range(2))
    assert encoder.run(PruMerge())[0] == [0]
    assert encoder.run(PruMerge(plus=True))[0] == [0, *range(49 // 6, 48, 16)]


def test_sampled_tokens_of_a_picture_that_has_lost_some():
    encoder = Encoder(5)
    tokens = encoder.tokens()
    tokens.present = torch.arange(N)[None] % 3 != 0
    select = Sampled(Top(VisionAttention(-2), 10), 6)
    chosen = select.select(tokens)
    first = select.first.select(tokens)
    rest = (tokens.present & ~first)[0].nonzero()[:, 0].tolist()
    assert (chosen & ~first)[0].nonzero()[:, 0].tolist() == rest[:: len(rest) // 6][:6]
    tokens.present = torch.zeros_like(tokens.present)
    assert not select.select(tokens).any()


def test_schedules_read_like_the_notes():
    attention = VisionAttention(-2)
    dominant = Top(attention, 54)
    assert VisionZip(dominant=54, contextual=10).schedule() == Schedule(
        Stage(0, Sampled(dominant, 10), merge=Nearest(EncoderKeys(-2), "onto", dominant))
    )
    average = Nearest(Features("projected"))
    last = LastTokenAttention(rope=True, over="all", layer="K")
    assert VScan(layers=(0, 16), keep=96).schedule() == Schedule(
        Stage(0, LocalScan(VisionAttention(5 / 24), 96, 6) >> Top(attention, 96), merge=average),
        Stage(16, Top(last, 1 / 3, of="current")),
    )
    shallow, deep = VisionAttention(7 / 32, "received"), VisionAttention(-1, "received")
    last = LastTokenAttention(rope=False, over="all", layer="K")
    assert VScan(layers=(0, 14), keep=0.6, then=0.67, form="qwen").schedule() == Schedule(
        Stage(0, LocalScan(shallow, 0.6, 4, "capped") >> Top(deep, 0.6), merge=average),
        Stage(14, Top(last, 0.67, of="current")),
    )
    joint = VisionAttention(-1, heads="joint")
    merge = Neighbors(EncoderKeys(-1, "joint"), joint, 32)
    assert PruMerge().schedule() == Schedule(Stage(0, IQR(joint), merge=merge))
    assert PruMerge(plus=True).schedule() == Schedule(Stage(0, Supplemented(IQR(joint)), merge=merge))


@pytest.mark.parametrize(
    "spec",
    [
        "visionzip:dominant=54,contextual=10,positions=renumber",
        "vscan:layers=0+14,keep=0.6,then=0.67,form=qwen,shallow=7,deep=-1,window=3",
        "prumerge:plus=true,factor=2.0,neighbors=8,positions=renumber",
    ],
)
def test_written_forms(spec):
    method = get(spec)
    assert str(method) == spec
    assert from_json(to_json(method.schedule())) == method.schedule()
    if "renumber" in spec:
        assert all(stage.positions == "renumber" for stage in method.schedule())


@pytest.mark.parametrize(
    "spec",
    [
        "visionzip:dominant=0",
        "visionzip:contextual=1.5",
        "visionzip:encoder_layer=last",
        "visionzip:positions=stretch",
        "vscan:form=llama",
        "vscan:then=2",
        "vscan:window=0",
        "vscan:layers=3",
        "vscan:shallow=1.5",
        "prumerge:plus=1",
        "prumerge:neighbors=0",
        "prumerge:factor=high",
        "prumerge:positions=stretch",
    ],
)
def test_parameters_out_of_range_are_named(spec):
    with pytest.raises(PruningError):
        get(spec)
