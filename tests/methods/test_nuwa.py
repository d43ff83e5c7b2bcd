"""Nuwa against NumPy that follows the note's formulas, by loops: exact indices and merged vectors.

Pictures of odd sides: scores, encoder features and embeddings are random numbers, attention is that of four heads.
"""

import math

import numpy as np
import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import LastTokenAttention, Top, VisualLayout
from feathervlm.core import PruningError, Unprunable
from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria.attention import VisionAttention
from feathervlm.core.layout import picture_of
from feathervlm.core.mergers.neighborhood import Neighborhood
from feathervlm.core.signals import EncoderAttention, Features
from feathervlm.methods import Nuwa, get
from feathervlm.methods.describe import describe
from feathervlm.methods.nuwa import Regions

HEADS, DIM, WIDTH = 4, 8, 16
ATTENTION = VisionAttention(-2)


class Encoder:
    """[CLS] attention by heads, patch features and embeddings of every picture (frames, rows, cols) of one sample."""

    def __init__(self, seed, grids=((1, 7, 7),), equal=False):
        draw = np.random.default_rng(seed)
        self.grids, self.n = list(grids), sum(map(math.prod, grids))
        self.heads = draw.random((HEADS, self.n)).astype(np.float32)
        if equal:
            self.heads[:] = 0.25
        self.features = draw.standard_normal((self.n, DIM)).astype(np.float32)
        self.embeddings = draw.standard_normal((self.n, WIDTH)).astype(np.float32)

    def read(self, signal):
        if isinstance(signal, EncoderAttention):
            return torch.tensor(self.heads.sum(0) / HEADS)[None]
        assert signal == Features("vision")
        return torch.tensor(self.features)[None]

    def tokens(self, present=None):
        layout = VisualLayout(torch.ones(1, self.n, dtype=torch.bool), [self.grids])
        place = layout.geometry()
        return Candidates(place, place.exists if present is None else present, self)

    def run(self, method):
        """What the first stage keeps, where each token goes, and what becomes of the embeddings."""
        stage, tokens = method.schedule().stages[0], self.tokens()
        kept = stage.select.select(tokens)
        groups = stage.merge.groups(tokens, kept)
        merged = stage.merge.combine(torch.tensor(self.embeddings)[None], groups, tokens)[0]
        return kept[0].nonzero().flatten().tolist(), groups[0].tolist(), merged.numpy()


def naive(encoder, keep, pillars=0.55):
    """(kept, groups, merged) of all pictures."""
    scores = encoder.heads.sum(0) / HEADS
    kept, groups, merged, start = [], [-1] * encoder.n, np.zeros((encoder.n, WIDTH)), 0
    for frames, height, width in encoder.grids:
        cells = {start + (f * height + r) * width + c: (f, r, c) for f, r, c in np.ndindex(frames, height, width)}
        start += len(cells)
        count = max(int(len(cells) * keep), 1) if keep <= 1 else min(keep, len(cells))
        each, regions = math.ceil(4 * count / len(cells)), {}
        for token, (f, r, c) in cells.items():
            regions.setdefault((f, r // 2, c // 2), []).append(token)
        ranked = sorted(cells, key=lambda token: (-scores[token], token))
        sent = {token for region in regions.values() for token in sorted(region, key=ranked.index)[:each]}
        stay = sorted(sorted(cells, key=lambda token, sent=sent: (token not in sent, ranked.index(token)))[:count])
        bound = np.quantile(scores[stay].astype(np.float64), pillars)
        radius, most = math.sqrt(280 / 1058) * math.hypot(height - 1, width - 1), {}
        for token in stay:
            merged[token] = encoder.embeddings[token]
            groups[token] = token
            if scores[token] >= bound - 1e-9:
                continue
            weights = {}
            for other, (f, r, c) in cells.items():
                a, b = (encoder.features[one].astype(np.float64) for one in (token, other))
                likeness = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                far = math.hypot(r - cells[token][1], c - cells[token][2])
                same_frame = f == cells[token][0]
                weights[other] = max(likeness, 0) * max(0, 1 - far / radius) if same_frame else 0
            total = sum(weights.values())
            for other, weight in weights.items():
                if other != token:
                    merged[token] += weight / total * encoder.embeddings[other]
                if weight > 0 and other not in stay and weight / total > most.get(other, (0, 0))[0]:
                    most[other] = weight / total, token
        kept += stay
        for other, (_, token) in most.items():
            groups[other] = token
    return sorted(kept), groups, merged


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [7 / 36, 7 / 18, 7 / 12, 11, 0.9])
@pytest.mark.parametrize("grids", [[(1, 7, 7)], [(1, 7, 7), (1, 3, 6)], [(2, 5, 4)]], ids=["odd", "two", "frames"])
def test_it_keeps_and_merges_what_the_formulas_say(seed, keep, grids):
    encoder = Encoder(seed, grids)
    kept, groups, merged = encoder.run(Nuwa(keep=keep))
    expected, into, states = naive(encoder, keep)
    assert kept == expected
    assert groups == into
    np.testing.assert_allclose(merged[kept], states[kept], atol=1e-5)


@pytest.mark.parametrize("pillars", [0.0, 0.25, 1.0])
def test_pillars_are_left_as_they_are(pillars):
    encoder = Encoder(1)
    kept, groups, merged = encoder.run(Nuwa(keep=0.4, pillars=pillars))
    _, into, states = naive(encoder, 0.4, pillars)
    assert groups == into
    np.testing.assert_allclose(merged[kept], states[kept], atol=1e-5)
    same = [token for token in kept if np.array_equal(merged[token], encoder.embeddings[token])]
    scores = encoder.heads.sum(0)[kept]
    assert len(same) == (scores >= np.quantile(scores, pillars) - 1e-6).sum()
    assert pillars or same == kept


@pytest.mark.parametrize(("keep", "each", "later"), [(7 / 36, 1, 16), (7 / 18, 2, 32), (7 / 12, 3, 48)])
def test_counts_are_those_of_the_paper(keep, each, later):
    method, encoder = Nuwa(keep=keep), Encoder(0, [(1, 24, 24)])
    regions = Regions(ATTENTION, keep)
    chosen = regions.select(encoder.tokens())[0].view(12, 2, 12, 2).sum((1, 3))
    assert (chosen == each).all()
    assert regions.expected(ImageTokens(picture_of((1, 24, 24)), 576)) == each * 144
    tokens = method.schedule().tokens_per_layer([(1, 24, 24)], depth=32)
    assert tokens == [round(576 * keep)] * 16 + [later] * 16
    assert sum(tokens) / 32 == {1: 64, 2: 128, 3: 192}[each]


def test_regions_at_an_odd_border_are_smaller():
    regions = Regions(ATTENTION, 0.5)
    chosen = regions.select(Encoder(2).tokens())[0].view(7, 7)
    counts = [[int(chosen[r : r + 2, c : c + 2].sum()) for c in range(0, 7, 2)] for r in range(0, 7, 2)]
    assert counts == [[2, 2, 2, 2]] * 3 + [[2, 2, 2, 1]]
    assert regions.expected(ImageTokens(picture_of((1, 7, 7)), 49)) == 31


def test_equal_scores_leave_the_first_of_every_region_and_only_pillars():
    encoder = Encoder(3, equal=True)
    kept, groups, merged = encoder.run(Nuwa(keep=12))
    assert kept == [7 * row + col for row in range(0, 5, 2) for col in range(0, 7, 2)]
    assert np.array_equal(merged[kept], encoder.embeddings[kept])
    assert all(group == -1 for token, group in enumerate(groups) if token not in kept)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 5), (1, 2, 1)])
def test_pictures_of_a_token_or_a_line(grid):
    encoder = Encoder(4, [grid])
    for keep in (0.1, 0.6, 1.0):
        kept, groups, merged = encoder.run(Nuwa(keep=keep))
        expected, into, states = naive(encoder, keep) if grid != (1, 1, 1) else ([0], [0], encoder.embeddings)
        assert (kept, groups) == (expected, into)
        np.testing.assert_allclose(merged[kept], states[kept], atol=1e-5)


def test_no_picture_is_no_trouble():
    layout = VisualLayout(torch.zeros(1, 4, dtype=torch.bool), [[]])
    place = layout.geometry()

    class Nothing:
        def read(self, signal):
            return torch.zeros((1, 0) if isinstance(signal, EncoderAttention) else (1, 0, DIM))

    stage = Nuwa().schedule().stages[0]
    tokens = Candidates(place, place.exists, Nothing())
    kept = stage.select.select(tokens)
    assert kept.shape == stage.merge._pillars(tokens, kept).shape == stage.merge._radius(tokens).shape == (1, 0)


def test_what_has_left_is_not_taken_up():
    encoder = Encoder(5)
    present = torch.ones(1, 49, dtype=torch.bool)
    present[0, 10:30] = False
    tokens, states = encoder.tokens(present), torch.tensor(encoder.embeddings)[None]
    kept = present & (torch.arange(49) % 3 == 0)
    merger = Neighborhood(Features("vision"), ATTENTION)
    groups = merger.groups(tokens, kept)
    merged = merger.combine(states, groups, tokens)
    gone = torch.where(present[..., None], states, torch.nan)
    assert torch.equal(merger.combine(gone, groups, tokens), merged)
    assert (groups[0, 10:30] == -1).all()


def test_the_model_runs_on_the_merged_embeddings():
    """Against the unpruned model with the merged vectors in place and dropped tokens hidden, batch and padding too."""
    model, method = tiny.llava(), Nuwa(layers=(0, 3), keep=0.5, then=0.5)
    prompts = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3), tiny.prompt(0, seed=3)]
    inputs = tiny.batch(*prompts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    seen = {}

    class Watched(Neighborhood):
        def combine(self, states, groups, tokens):
            seen["groups"], seen["before"], seen["tokens"] = groups, states, tokens
            seen["after"] = super().combine(states, groups, tokens)
            return seen["after"]

    first, second = method.schedule().stages
    watched = feathervlm.Schedule(
        feathervlm.Stage(0, first.select, merge=Watched(first.merge.vectors, first.merge.score)), second
    )
    with torch.no_grad(), feathervlm.prune(model, watched) as pruning:
        pruned = model(**inputs).logits[:, -3:]
    visual, attended = inputs["input_ids"] == tiny.IMAGE, inputs["attention_mask"].bool()
    length, handles = visual.shape[1], []
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def hide(index, module, args, kwargs):
        gone = visual.clone()
        for row, kept in enumerate(pruning.report.stages[0 if index < 3 else 1].kept):
            gone[row, visual[row].nonzero()[:, 0][kept]] = False
        hidden = args[0].clone()
        if index == 0:
            for row in range(len(visual)):
                places = visual[row].nonzero()[:, 0]
                hidden[row, places] = seen["after"][row, : len(places)]
        allowed = causal & (~gone & attended)[:, None, None] | torch.eye(length, dtype=torch.bool)
        return (hidden, *args[1:]), {**kwargs, "attention_mask": allowed}

    for index, layer in enumerate(model.get_decoder().layers):
        handles.append(
            layer.register_forward_pre_hook(lambda *given, index=index: hide(index, *given), with_kwargs=True)
        )
    with torch.no_grad():
        dense = model(**inputs).logits[:, -3:]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(pruned, dense, atol=2e-4, rtol=0)
    for row, prompt in enumerate(prompts[:2]):
        with torch.no_grad(), feathervlm.prune(model, method) as alone:
            model(**tiny.batch(prompt))
        for one, many in zip(alone.report.stages, pruning.report.stages, strict=True):
            assert one.kept[0].tolist() == many.kept[row].tolist()
    kept = seen["groups"] == torch.arange(seen["groups"].shape[1])
    assert (seen["after"] - seen["before"])[kept].abs().max() > 0.05


def test_it_is_found_described_and_solved():
    method = Nuwa(keep=0.25, positions="stretch")
    assert get(str(method)) == method
    first, second = describe(Nuwa())["stages"]
    assert (first["layer_of_32"], first["tokens_of_576"], first["exact"], first["merged"]) == (0, 224, True, True)
    assert (second["layer_of_32"], second["tokens_of_576"], second["exact"]) == (16, 32, True)
    assert Nuwa().solve(64, grids=[(1, 24, 24)], depth=32).keep == pytest.approx(7 / 36, abs=2e-3)
    last = method.schedule().stages[1]
    assert last.select == Top(LastTokenAttention(over="all"), 1 / 7, of="current")
    assert [stage.positions for stage in method.schedule()] == ["stretch", "preserve"]


def test_the_image_may_be_last_in_no_prompt():
    inputs = tiny.batch([1, 7, 8, *[tiny.IMAGE] * tiny.SIDE**2])
    with (
        feathervlm.prune(tiny.llava(), Nuwa(layers=(0, 3))) as pruning,
        pytest.raises(Unprunable, match="ends inside"),
    ):
        pruning.model(**inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nuwa(layers=(0,)), "must be 2 layers"),
        (lambda: Nuwa(then=0), "then=0"),
        (lambda: Nuwa(keep=0), "keep=0"),
        (lambda: Nuwa(pillars=1.5), "pillars=1.5"),
        (lambda: Nuwa(positions="renumber"), "positions='renumber'"),
        (lambda: Neighborhood(Features("vision"), ATTENTION, reach=0), "reach=0"),
        (lambda: Neighborhood("vision", ATTENTION), "vectors='vision'"),
        (lambda: Neighborhood(Features("vision"), 3), "score=3"),
        (lambda: Regions(3, 0.5), "criterion=3"),
    ],
)
def test_meaningless_parameters_are_errors(make, message):
    with pytest.raises(PruningError, match=message):
        make()
