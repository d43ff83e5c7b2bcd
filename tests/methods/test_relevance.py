"""DART, CDPruner, STAR and TopV against NumPy that follows the notes' formulas, in exact indices.

One fixed random picture of 7 x 7 tokens and a prompt of a few words: keys of four heads, embeddings and hidden states.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import PruningError, Schedule, Stage, Top, VisualLayout
from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria import features as relevance
from feathervlm.core.criteria import transport
from feathervlm.core.criteria.features import FeatureAttention, KeyNorm, TextSimilarity
from feathervlm.core.criteria.transport import OptimalTransport, sent_by
from feathervlm.core.layout import picture_of
from feathervlm.core.selectors.diversity import DPP
from feathervlm.core.selectors.redundancy import FarFromPivots
from feathervlm.core.signals import Features, IsText, Keys, LayerStates, Text
from feathervlm.core.spec import from_json, to_json
from feathervlm.methods import DART, STAR, CDPruner, TopV, get
from feathervlm.methods.describe import describe
from feathervlm.methods.topv import Recovered

SIDE, HEADS, DIM, WIDTH = 7, 4, 8, 64
N, WORDS, BEFORE = SIDE**2, 9, 4
SEEDS, COUNTS = range(4), [5, 12, 30, 49]


class Prompt:
    """Random signals of a prompt with pictures: `BEFORE` words, the pictures, and the other words."""

    def __init__(self, seed, images=1, words=WORDS, spare=3):
        draw = np.random.default_rng(seed)
        self.images, self.words, self.spare = images, words, spare  # further places in a batch hold no text
        self.visual, self.text = {}, {}
        for name, width in (("projected", WIDTH), ("hidden", WIDTH), ("keys", HEADS * DIM), ("rotated", HEADS * DIM)):
            self.visual[name] = draw.standard_normal((images * N, width)).astype(np.float32)
            self.text[name] = draw.standard_normal((words, width)).astype(np.float32)
        self.visual["entry"] = draw.standard_normal((images * N, WIDTH)).astype(np.float32)
        self.visual["middle"] = (self.visual["entry"] + draw.standard_normal((images * N, WIDTH))).astype(np.float32)
        for name in ("projected", "hidden"):
            self.visual[name][10:20] += self.text[name][-1]  # a patch that the last word is about

    def read(self, signal):
        if isinstance(signal, IsText):
            place = torch.arange(self.words + self.spare)
            return (place < self.words)[None] & (place >= (BEFORE if signal.text == "question" else 0))[None]
        if isinstance(signal, Text):
            values = torch.tensor(self.text[name_of(signal.of)])
            return torch.cat([values, torch.full((self.spare, values.shape[1]), float("nan"))])[None]
        return torch.tensor(self.visual[name_of(signal)])[None]

    def candidates(self, present=None):
        mask = torch.ones(1, self.images * N, dtype=torch.bool)
        geometry = VisualLayout(mask, [[(1, SIDE, SIDE)] * self.images]).geometry()
        return Candidates(geometry, mask if present is None else present, self)

    def kept(self, method):
        """What is left after every stage."""
        present, found = None, []
        for stage in method.schedule():
            present = stage.select.select(self.candidates(present))
            found.append(present[0].nonzero().flatten().tolist())
        return found


def name_of(signal):
    if isinstance(signal, Keys):
        return "rotated" if signal.rope else "keys"
    return signal.point if isinstance(signal, LayerStates) else signal.source


def softmax(values):
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def dart(p, count, pivots, words, keys="keys", start=BEFORE):
    def loudest(rows, among, number):
        norms = {i: np.abs(rows[i].astype(np.float64)).sum() for i in among}
        return sorted(sorted(among, key=lambda i: (-norms[i], i))[:number])

    visual = loudest(p.visual[keys], range(N), pivots)
    text = loudest(p.text[keys], range(start, WORDS), words)
    states = [p.visual["hidden"][i] for i in visual] + [p.text["hidden"][i] for i in text]
    kept = visual[:count]
    pool, wanted = [i for i in range(N) if i not in visual], count - len(kept)
    for place, state in enumerate(states):
        share = wanted // len(states) + (place < wanted % len(states))
        taken = sorted(pool, key=lambda i, state=state: (cosine(p.visual["hidden"][i], state), i))[:share]
        kept, pool = kept + taken, [i for i in pool if i not in taken]
    return sorted(kept)


def cdpruner(p, count, start=0):
    features, mean = p.visual["projected"].astype(np.float64), p.text["projected"][start:].astype(np.float64).mean(0)
    r = np.array([cosine(feature, mean) for feature in features])
    r = (r - r.min()) / (r.max() - r.min())
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kernel, chosen = r[:, None] * (unit @ unit.T) * r, []
    while len(chosen) < count:
        rest = [i for i in range(N) if i not in chosen]
        volume = [np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1] for i in rest]
        chosen.append(rest[int(np.argmax(volume))])
    return sorted(chosen)


def best(scores, count, among=range(N)):
    return sorted(sorted(among, key=lambda i: (-np.float32(scores[i]), i))[:count])


def attention(queries, features):
    """softmax(Q F^T / sqrt(dim)), one row for each query."""
    return softmax(queries.astype(np.float64) @ features.astype(np.float64).T / np.sqrt(features.shape[1]))


def star(p, count, then, start=0):
    features = p.visual["projected"]
    first = best(attention(features, features).mean(0), count)
    seen = attention(p.text["hidden"][start:], p.visual["hidden"][first]).mean(0)
    scores = dict(zip(first, seen, strict=True))
    return [first, best(scores, int(len(first) * then), first)]


def bounded(values):
    return (values - values.min()) / (values.max() - values.min())


def transport_cost(p, sigma=10.0, alpha=1.0, beta=1.0, gamma=0.01):
    """With all three terms of the paper, the distance to the middle of the picture included."""
    cost, far = np.zeros((N, N)), np.zeros((N, N))
    middle = np.zeros(N)
    for i in range(N):
        middle[i] = np.hypot(i // SIDE - (SIDE - 1) / 2, i % SIDE - (SIDE - 1) / 2)
        for j in range(N):
            cost[i, j] = np.linalg.norm(p.visual["entry"][i].astype(np.float64) - p.visual["middle"][j])
            square = (i // SIDE - j // SIDE) ** 2 + (i % SIDE - j % SIDE) ** 2
            far[i, j] = 1 - np.exp(-square / (2 * sigma**2))
    return alpha * bounded(cost) + beta * bounded(far) + gamma * bounded(middle)[:, None]


def plan(cost, epsilon=0.1, iterations=3, last="columns"):
    """Sinkhorn on the matrix itself."""
    found, n = np.exp(-cost / epsilon), len(cost)
    for _ in range(iterations):
        if last == "rows":
            found = found / found.sum(0, keepdims=True) / n
        found = found / found.sum(1, keepdims=True) / n
        if last == "columns":
            found = found / found.sum(0, keepdims=True) / n
    return found


def topv(p, count, every):
    chosen = best(plan(transport_cost(p)).sum(1), count)
    left = [i for i in range(N) if i not in chosen]
    return sorted(chosen + (left[::every] if every else []))


@pytest.mark.parametrize(("pivots", "words"), [(4, 4), (3, 0), (2, 20)])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_dart(seed, count, pivots, words):
    p = Prompt(seed)
    assert p.kept(DART(keep=count, pivots=pivots, words=words)) == [dart(p, count, pivots, words)]
    whole = DART(keep=count, pivots=pivots, words=words, text="all", rope=True)
    assert p.kept(whole) == [dart(p, count, pivots, words, "rotated", start=0)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_cdpruner(seed, count):
    p = Prompt(seed)
    assert p.kept(CDPruner(keep=count)) == [cdpruner(p, count)]
    assert p.kept(CDPruner(keep=count, text="question")) == [cdpruner(p, count, BEFORE)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_star(seed, count):
    p = Prompt(seed)
    assert p.kept(STAR(keep=count, then=0.4)) == star(p, count, 0.4)
    assert p.kept(STAR(keep=count, text="question")) == star(p, count, 0.5, BEFORE)


@pytest.mark.parametrize("every", [0, 2, 4])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_topv(seed, count, every):
    p = Prompt(seed)
    assert p.kept(TopV(keep=count, every=every)) == [topv(p, count, every)]


METHODS = [DART(keep=12), CDPruner(keep=12), STAR(keep=20), TopV(keep=12)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_images_of_one_prompt_are_chosen_from_one_by_one_by_the_same_text(method):
    both = Prompt(0, images=2, spare=0)
    expected = [[] for _ in method.schedule()]
    for image in range(2):
        alone = Prompt(0)
        alone.text = both.text
        alone.visual = {name: values[image * N : (image + 1) * N] for name, values in both.visual.items()}
        for stage, kept in zip(expected, alone.kept(method), strict=True):
            stage += [image * N + token for token in kept]
    assert both.kept(method) == expected


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_choices_do_not_depend_on_how_much_is_compared_at_a_time(method, monkeypatch):
    p = Prompt(0, images=3)
    at_once = p.kept(method)
    for module in (relevance, transport):
        monkeypatch.setattr(module, "BLOCK", 1000)
    assert p.kept(method) == at_once


def test_what_a_method_reads_is_described():
    description = {method.name: describe(method) for method in METHODS}
    assert [description[name]["needs_text"] for name in ("dart", "cdpruner", "star", "topv")] == [
        True,
        True,
        True,
        False,
    ]
    assert not describe(DART(words=0))["needs_text"]
    for name, part in (
        ("dart", "keys of the layer before"),
        ("cdpruner", "and embeddings of text"),
        ("topv", "after the attention"),
    ):
        assert part in description[name]["needs"][0]
    assert all(each["count_known"] for each in description.values())


def says_something(scores):
    """Whether scores vary by more than the noise of float32 around the marginal."""
    return np.std(scores) > 1e-5 * np.abs(np.mean(scores))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_star_averages_must_not_be_a_row_of_a_softmax(seed):
    p = Prompt(seed)
    for queries, features in (("visual", "projected"), ("text", "hidden")):
        looks = getattr(p, queries)[features]
        assert not says_something(attention(p.visual[features], looks).mean(1))
        ours = FeatureAttention("image" if queries == "visual" else "text", features).score(p.candidates())
        assert says_something(ours[0].exp().numpy())
        assert float(ours.exp().sum()) == pytest.approx(1)


def test_long_vectors_leave_scores_to_rank_by():
    """As in a trained model, where a few tokens take nearly all attention and the others would underflow."""
    p = Prompt(0)
    p.visual["hidden"] *= 30
    p.text["hidden"] *= 30
    scores = FeatureAttention("text", "hidden").score(p.candidates())[0]
    vanished = scores[scores.exp() == 0]
    assert len(vanished) > N // 2
    assert vanished.isfinite().all()
    assert vanished.unique().numel() == len(vanished)


@pytest.mark.parametrize("seed", SEEDS)
def test_sinkhorn_must_not_end_on_rows(seed):
    p = Prompt(seed)
    cost = transport_cost(p)
    assert not says_something(plan(cost, last="rows").sum(1))
    ours = OptimalTransport().score(p.candidates())[0].numpy()
    assert says_something(ours)
    np.testing.assert_allclose(ours, N * plan(cost).sum(1), rtol=1e-5)
    assert ours.mean() == pytest.approx(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_another_cost_is_another_ranking(seed):
    cost = torch.tensor(transport_cost(Prompt(seed)))[None]
    other = cost.flatten()[torch.randperm(N * N, generator=torch.Generator().manual_seed(seed))].view(1, N, N)
    here = torch.ones(1, N, dtype=torch.bool)
    rankings = [sent_by(each, here, 0.1, 3)[0].argsort(descending=True).tolist() for each in (cost, other)]
    assert rankings[0] != rankings[1]
    assert set(rankings[0][:12]) != set(rankings[1][:12])


def test_a_cost_of_the_source_alone_is_undone_by_rows():
    p = Prompt(0)
    without, much = transport_cost(p, gamma=0), transport_cost(p, gamma=5)
    np.testing.assert_allclose(plan(without).sum(1), plan(much).sum(1))


SCORES = [
    KeyNorm(),
    FeatureAttention(),
    FeatureAttention("text", "hidden"),
    TextSimilarity(),
    OptimalTransport(spatial=0),
]


@pytest.mark.parametrize("criterion", SCORES, ids=lambda c: type(c).__name__)
def test_equal_tokens_have_equal_scores_and_the_first_are_kept(criterion):
    p = Prompt(0)
    p.visual = {name: np.repeat(values[:1], N, 0) for name, values in p.visual.items()}
    tokens = p.candidates()
    scores = criterion.score(tokens)[0]
    assert (scores == scores[0]).all()
    assert Top(criterion, 9).select(tokens)[0].nonzero().flatten().tolist() == list(range(9))


@pytest.mark.parametrize("criterion", SCORES, ids=lambda c: type(c).__name__)
def test_absent_tokens_have_no_say(criterion):
    """They may hold anything, and the others are scored as if they had never been."""
    p, present = Prompt(1), torch.rand(1, N, generator=torch.Generator().manual_seed(0)) < 0.5
    scores = criterion.score(p.candidates(present))
    p.visual = {name: values.copy() for name, values in p.visual.items()}
    for values in p.visual.values():
        values[~present[0].numpy()] = np.nan
    assert torch.equal(criterion.score(p.candidates(present))[present], scores[present])
    assert not torch.equal(scores[present], criterion.score(Prompt(1).candidates())[present]) or isinstance(
        criterion, KeyNorm | TextSimilarity
    )


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        (DART(), 64),  # the authors keep 8 floor(N (1 - r) / 8) + 4 = 68
        (DART(keep=192), 192),
        (CDPruner(), 144),
        (CDPruner(keep=0.5), 288),
        (CDPruner(keep=0.3), 172),
        (CDPruner(keep=0.2), 115),
        (STAR(), 144),
        (TopV(), 144 + 108),
        (TopV(keep=100, every=0), 100),
        (TopV(keep=0.5, every=5), 288 + 58),
    ],
)
def test_known_counts_of_576(method, tokens):
    assert method.schedule().tokens_per_layer([(1, 24, 24)], 32)[-1] == pytest.approx(tokens, abs=0.5)


@pytest.mark.parametrize("every", [0, 1, 3, 4])
@pytest.mark.parametrize("keep", [2, 12, 48, 49])
def test_a_recovered_sample_has_the_size_it_says(keep, every):
    selector = Recovered(Top(TextSimilarity(), keep), every)
    size = selector.size(ImageTokens(picture_of((1, SIDE, SIDE)), N))
    assert int(selector.select(Prompt(0).candidates()).sum()) == size
    assert abs(selector.expected(ImageTokens(picture_of((1, SIDE, SIDE)), N)) - size) < 1


def test_schedules():
    norm, own = KeyNorm(), FeatureAttention("image", "projected")
    assert DART().schedule() == Schedule(
        Stage(1 / 16, FarFromPivots(Top(norm, 4), 1 / 9, "hidden", words=4, text="question", keys=Keys()))
    )
    assert CDPruner(positions="renumber").schedule() == Schedule(
        Stage(0, DPP(0.25, TextSimilarity("projected", "all"), "projected"), "renumber")
    )
    assert STAR().schedule() == Schedule(
        Stage(0, Top(own, 0.5)), Stage(0.5, Top(FeatureAttention("text", "hidden"), 0.5, of="current"))
    )
    assert TopV().schedule() == Schedule(Stage(3 / 32, Recovered(Top(OptimalTransport(), 0.25), 4)))


@pytest.mark.parametrize(
    ("method", "signals"),
    [
        (DART(), {Keys(), Features("hidden"), IsText("question"), Text(Keys()), Text(Features("hidden"))}),
        (DART(words=0, rope=True), {Keys(rope=True), Features("hidden")}),
        (CDPruner(), {Features("projected"), Text(Features("projected")), IsText("all")}),
        (STAR(), {Features("projected"), Features("hidden"), Text(Features("hidden")), IsText("all")}),
        (TopV(), {LayerStates("entry"), LayerStates("middle")}),
    ],
)
def test_signals(method, signals):
    assert set(method.schedule().signals()) == signals


LAYERS = st.integers(0, 80) | st.floats(0, 1, exclude_max=True)
KEEPS = st.floats(1e-6, 1) | st.integers(1, 3000)
PARTS, PLACES = st.sampled_from(["all", "question"]), st.sampled_from(["preserve", "renumber", "stretch"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(DART, LAYERS, KEEPS, st.integers(2, 9), st.integers(0, 9), PARTS, st.booleans())
    | st.builds(CDPruner, LAYERS, KEEPS, PARTS, PLACES)
    | st.builds(STAR, st.tuples(LAYERS, LAYERS), KEEPS, st.floats(0.01, 1), PARTS)
    | st.builds(TopV, LAYERS, KEEPS, st.integers(0, 9), st.floats(0.1, 99), st.floats(0.01, 9), st.integers(1, 9))
)
def test_the_written_forms_make_the_method_again(method):
    assert get(str(method)) == method
    assert from_json(to_json(method.schedule())) == method.schedule()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("dart:keep=0", "keep=0"),
        ("dart:pivots=1", "pivots=1"),
        ("dart:words=-1", "words=-1"),
        ("dart:text=some", "text='some'"),
        ("dart:rope=maybe", "rope='maybe'"),
        ("cdpruner:text=some", "text='some'"),
        ("star:text=some", "text='some'"),
        ("cdpruner:positions=keep", "positions='keep'"),
        ("star:then=0", "then=0"),
        ("star:layers=[8]", "layers=(8,)"),
        ("topv:every=-1", "every=-1"),
        ("topv:sigma=0", "sigma=0"),
        ("topv:epsilon=0", "epsilon=0"),
        ("topv:epsilon=0.003", "epsilon=0.003"),
        ("topv:iterations=0", "iterations=0"),
    ],
)
def test_a_bad_request_is_named(spec, named):
    with pytest.raises(PruningError) as error:
        get(spec)
    assert named in str(error.value)


def test_text_has_no_features_of_the_encoder():
    with pytest.raises(PruningError, match="Text has no"):
        FarFromPivots(Top(KeyNorm(), 4), 0.5, "vision", words=2)
    with pytest.raises(PruningError, match="Text has no"):
        FeatureAttention("text", "vision")
