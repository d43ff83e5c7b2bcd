"""SparseVLM and SparseVLM+ against NumPy that follows the notes' formulas: raters, rows of attention, RoPE, clusters.

Weights are those of a tiny Llama; everything that chooses is written a second time, plainly, from its projections.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import feathervlm
import reference
import tiny_models as tiny
from feathervlm import PruningError, Schedule, Stage, Top, Unprunable, VisualLayout
from feathervlm.core import Clusters, LastTokenAttention, TextRaterAttention, TopAndClusters
from feathervlm.core.budget import ImageTokens
from feathervlm.core.criteria.attention import raters
from feathervlm.core.layout import picture_of
from feathervlm.core.signals import Features, IsText, RaterAttention, Text
from feathervlm.core.spec import from_json, to_json
from feathervlm.engine.probes import attention
from feathervlm.methods import SparseVLM, get
from feathervlm.methods.describe import describe

HEADS, KV_HEADS, DIM = 4, 2, 16
BEFORE, BETWEEN, AFTER = 3, 2, 8
AT, TABLE = (2, 3, 5), (20, 12, 6)
SQUARE = [[(1, 7, 7)], [(1, 7, 7), (1, 5, 6)]]


@cache
def llama():
    return tiny.llama("eager")


class Prompt:
    """Random embeddings of words and pictures: where the visual tokens are, and of which picture."""

    def __init__(self, grids, seed, after=AFTER):
        self.grids, self.visual, self.image = grids, [], []
        length = BEFORE
        for number, (frames, rows, cols) in enumerate(grids):
            count = frames * rows * cols
            self.visual += range(length, length + count)
            self.image += [number] * count
            length += count + BETWEEN
        self.length = length + after
        draw = torch.Generator().manual_seed(seed)
        self.embeddings = 0.4 * torch.randn(1, self.length, 64, generator=draw)  # more, and one word takes it all

    @property
    def layout(self):
        mask = torch.zeros(1, self.length, dtype=torch.bool)
        mask[0, self.visual] = True
        return VisualLayout(mask, [self.grids])

    def text(self, which):
        last = max(self.visual) if which == "question" else -1
        return [place for place in range(self.length) if place > last and place not in self.visual]


def softmax(values):
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def naive_raters(visual, text):
    """Indices of the words above the mean."""
    mean = np.mean([softmax(text @ token) for token in visual], 0)
    return [word for word in range(len(text)) if mean[word] > mean.mean()]


def rotate(vector, position):
    half = len(vector) // 2
    angle = position * 10000.0 ** (-np.arange(half) / half)
    cos, sin, (a, b) = np.cos(angle), np.sin(angle), (vector[:half], vector[half:])
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def head_maps(block, states, positions, asking):
    """Attention of the rows `asking` to all rows: (heads, asking, rows), causal, with RoPE."""
    normed = block.input_layernorm(states)
    query, key = (
        projection(normed)[0].view(-1, heads, DIM).numpy().astype(np.float64)
        for projection, heads in ((block.self_attn.q_proj, HEADS), (block.self_attn.k_proj, KV_HEADS))
    )
    maps = np.zeros((HEADS, len(asking), len(positions)))
    for head in range(HEADS):
        keys = [rotate(key[row, head // (HEADS // KV_HEADS)], positions[row]) for row in range(len(positions))]
        for number, row in enumerate(asking):
            turned = rotate(query[row, head], positions[row])
            logits = np.array([turned @ keys[other] for other in range(row + 1)]) / np.sqrt(DIM)
            maps[head, number, : row + 1] = softmax(logits)
    return maps


def naive_scores(block, states, positions, asking, visual, plus, heads=HEADS * 14 // 32, min_decay=0.1):
    """Of the rows `visual`, from the rows `asking`."""
    maps = head_maps(block, states, positions, asking)[:, :, visual]
    if plus:
        frequency = 10000.0 ** (-np.arange(DIM // 2) / (DIM // 2))
        for number, row in enumerate(asking):
            for token, place in enumerate(visual):
                prior = np.mean(np.cos((positions[row] - positions[place]) * frequency))
                maps[:, number, token] /= max(prior, min_decay)
        mass = maps.sum((1, 2))
        maps = maps[sorted(sorted(range(HEADS), key=lambda head: -mass[head])[:heads])]
    return maps.mean((0, 1))


@torch.no_grad()
def by_hand(model, prompt, table, plus, renumber, which="question"):
    """For each stage (kept, where tokens went, scores, states after it), and the logits of the remaining tokens."""
    states, positions, places = prompt.embeddings, list(range(prompt.length)), list(range(prompt.length))
    embedded, text = prompt.embeddings[0].numpy().astype(np.float64), prompt.text(which)
    asking = [text[word] for word in naive_raters(embedded[prompt.visual], embedded[text])]
    left, stages, previous = list(range(len(prompt.visual))), [], None
    for index, block in enumerate(model.model.layers):
        if index in AT:
            rows = {token: places.index(prompt.visual[token]) for token in left}
            ask = [places.index(place) for place in asking]
            scores = naive_scores(model.model.layers[index - 1], *previous, ask, [rows[t] for t in left], plus)
            vectors, kept, went = states[0].numpy().astype(np.float64), [], {}
            for image in range(len(prompt.grids)):
                mine = [i for i, token in enumerate(left) if prompt.image[token] == image]
                among = vectors[[rows[left[i]] for i in mine]]
                stay, nearest = reference.recycled(
                    scores[mine], among, table[AT.index(index)], share=None if plus else 0.3
                )
                kept += [left[mine[i]] for i in stay]
                went |= {left[mine[a]]: left[mine[b]] for a, b in nearest.items()}
            new = states.clone()
            for centre in set(went.values()):
                members = [rows[token] for token, target in went.items() if target == centre]
                new[0, rows[centre]] = torch.tensor(vectors[members].mean(0), dtype=torch.float32)
            gone = {rows[token] for token in left} - {rows[token] for token in kept}
            stay = [row for row in range(len(places)) if row not in gone]
            states, places = new[:, stay], [places[row] for row in stay]
            positions = list(range(len(stay))) if renumber else [positions[row] for row in stay]
            left = kept
            stages.append((kept, went, scores, states))
        previous = states, positions
        length, ids = len(positions), torch.tensor([positions])
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        tables = model.model.rotary_emb(states, ids)
        states = block(states, attention_mask=mask, position_ids=ids, position_embeddings=tables)
    return stages, model.lm_head(model.model.norm(states))


def pruned(model, prompt, method):
    """The report, the states that are left as they enter each stage's layer, and logits."""
    seen = {}
    handles = [
        model.model.layers[at].input_layernorm.register_forward_pre_hook(
            lambda module, args, at=at: seen.__setitem__(at, args[0])
        )
        for at in AT
    ]
    with torch.no_grad(), feathervlm.prune(model, method, layout=prompt.layout) as pruning:
        logits = model(inputs_embeds=prompt.embeddings).logits
    for handle in handles:
        handle.remove()
    return pruning.report, seen, logits


def merged_into(report, stage):
    """{token: centre} of the tokens that were merged at a stage."""
    groups, entered = report.stages[stage].groups, report.stages[stage - 1].kept[0] if stage else None
    names = range(len(groups[0])) if entered is None else entered.tolist()
    return {token: target for token, target in zip(names, groups[0].tolist(), strict=True) if target not in (-1, token)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grids", SQUARE, ids=["one", "two"])
@pytest.mark.parametrize(("plus", "positions"), [(False, None), (False, "preserve"), (True, None), (True, "renumber")])
def test_it_is_the_papers_algorithm(plus, positions, grids, seed):
    prompt, renumber = Prompt(grids, seed), (positions or ("preserve" if plus else "renumber")) == "renumber"
    stages, logits = by_hand(llama(), prompt, TABLE, plus, renumber)
    report, seen, ours = pruned(llama(), prompt, SparseVLM(layers=AT, table=TABLE, plus=plus, positions=positions))
    for number, (kept, went, scores, states) in enumerate(stages):
        stage = report.stages[number]
        np.testing.assert_allclose(stage.scores[0], scores, rtol=1e-3, atol=1e-7)
        assert stage.kept[0].tolist() == kept
        if plus:
            assert stage.groups is None
            assert len(kept) == len(grids) * TABLE[number]
        else:
            assert merged_into(report, number) == {token: to for token, to in went.items() if token != to}
            assert len(kept) > len(grids) * TABLE[number]
        torch.testing.assert_close(seen[AT[number]], states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[:, -AFTER:], logits[:, -AFTER:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("min_decay", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_debiased_attention_of_the_heads_that_look_most(heads, min_decay):
    """With a bound that some places reach, and others not."""
    prompt = Prompt(SQUARE[0], 3)
    embedded, text = prompt.embeddings[0].numpy(), prompt.text("question")
    asking = [text[word] for word in naive_raters(embedded[prompt.visual], embedded[text])]
    block, places = llama().model.layers[0], list(range(prompt.length))
    with torch.no_grad():
        expected = naive_scores(block, prompt.embeddings, places, asking, prompt.visual, True, heads, min_decay)
    schedule = Schedule(Stage(1, Top(TextRaterAttention(heads=heads / HEADS, min_decay=min_decay), 20)))
    with torch.no_grad(), feathervlm.prune(llama(), schedule, layout=prompt.layout) as pruning:
        llama()(inputs_embeds=prompt.embeddings)
    np.testing.assert_allclose(pruning.report.stages[0].scores[0], expected, rtol=1e-3, atol=1e-7)
    distance = np.subtract.outer(asking, prompt.visual)[..., None]
    priors = np.cos(distance * 10000.0 ** (-np.arange(DIM // 2) / (DIM // 2))).mean(-1)
    assert priors.min() < 0.7 < priors.max()


@pytest.mark.parametrize("plus", [False, True])
def test_raters_before_the_picture_see_nothing_of_it(plus):
    """They count, with zeros, as in a causal row."""
    for seed in range(20):
        prompt = Prompt(SQUARE[0], seed)
        embedded, text = prompt.embeddings[0].numpy(), prompt.text("all")
        before = [word for word in naive_raters(embedded[prompt.visual], embedded[text]) if word < BEFORE]
        if before:
            break
    assert before
    method = SparseVLM(layers=AT, table=TABLE, plus=plus, text="all")
    stages, _ = by_hand(llama(), prompt, TABLE, plus, not plus, "all")
    report, _, _ = pruned(llama(), prompt, method)
    for stage, (kept, _, scores, _) in zip(report.stages, stages, strict=True):
        np.testing.assert_allclose(stage.scores[0], scores, rtol=1e-3, atol=1e-7)
        assert stage.kept[0].tolist() == kept


@pytest.mark.parametrize("plus", [False, True])
def test_rows_are_made_a_block_at_a_time(plus, monkeypatch):
    prompt, method = Prompt(SQUARE[1], 0), SparseVLM(layers=AT, table=TABLE, plus=plus)
    at_once = pruned(llama(), prompt, method)[0]
    made = []
    weigh = attention.WeightsProbe.weights

    def counted(probe, recorder, query, keys, index):
        made.append((query.shape[2], HEADS * query.shape[2] * keys.shape[2]))
        return weigh(probe, recorder, query, keys, index)

    monkeypatch.setattr(attention.WeightsProbe, "weights", counted)
    monkeypatch.setattr(attention, "BLOCK", HEADS * prompt.length * 3)
    for one, many in zip(pruned(llama(), prompt, method)[0].stages, at_once.stages, strict=True):
        assert one.kept[0].tolist() == many.kept[0].tolist()
        torch.testing.assert_close(one.scores[0], many.scores[0])
    assert len(made) > 3 * 2
    assert sum(rows for rows, _ in made) == 3 * (prompt.length - len(prompt.visual))
    assert all(logits <= HEADS * prompt.length * 3 for _, logits in made)


def test_one_word_after_the_picture_is_the_rater():
    prompt = Prompt(SQUARE[0], 1, after=1 - BETWEEN)
    assert len(prompt.text("question")) == 1
    report, _, _ = pruned(llama(), prompt, SparseVLM(layers=AT, table=TABLE))
    last = Schedule(Stage(2, Top(LastTokenAttention(over="all"), 20)))
    with torch.no_grad(), feathervlm.prune(llama(), last, layout=prompt.layout) as pruning:
        llama()(inputs_embeds=prompt.embeddings)
    torch.testing.assert_close(report.stages[0].scores[0], pruning.report.stages[0].scores[0])


@pytest.mark.parametrize("plus", [False, True])
def test_without_a_word_after_the_picture_it_is_refused(plus):
    prompt = Prompt(SQUARE[0], 1, after=-BETWEEN)
    with pytest.raises(Unprunable, match="text after the image"):
        pruned(llama(), prompt, SparseVLM(layers=AT, table=TABLE, plus=plus))


@pytest.mark.parametrize("plus", [False, True])
def test_a_picture_of_one_token_and_a_budget_beyond_it(plus):
    for grids, table in (([(1, 1, 1)], TABLE), ([(1, 1, 1)], (0.5, 0.5, 0.5)), ([(1, 3, 3), (1, 7, 7)], TABLE)):
        prompt = Prompt(grids, 0)
        report, _, _ = pruned(llama(), prompt, SparseVLM(layers=AT, table=table, plus=plus))
        small = prompt.image.count(0)
        assert report.stages[0].kept[0].tolist()[:small] == list(range(small))
        assert all(stage.kept[0].numel() for stage in report.stages)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plus", [False, True])
def test_in_a_padded_batch_it_is_what_it_is_alone(plus, side):
    model = tiny.llava()
    prompts = [
        tiny.prompt(1, seed=1),
        tiny.prompt(2, seed=2, after=12),
        tiny.prompt(0, seed=3),
        tiny.prompt(1, 4, after=1),
    ]
    method = SparseVLM(layers=AT, table=TABLE, plus=plus)
    with torch.no_grad(), feathervlm.prune(model, method) as pruning:
        model(**tiny.batch(*prompts, side=side))
        together = pruning.report
        for row, prompt in enumerate(prompts):
            model(**tiny.batch(prompt))
            if tiny.IMAGE not in prompt:
                assert not pruning.report.pruned
                continue
            for one, many in zip(pruning.report.stages, together.stages, strict=True):
                assert one.kept[0].tolist() == many.kept[row].tolist()
                assert plus or one.groups[0].tolist() == many.groups[row].tolist()
                torch.testing.assert_close(one.scores[0], many.scores[row])


@pytest.mark.parametrize("seed", range(4))
def test_raters_by_hand(seed, monkeypatch):
    draw = torch.Generator().manual_seed(seed)
    visual, text = torch.randn(2, 30, 8, generator=draw), torch.randn(2, 12, 8, generator=draw)
    exists, there = torch.arange(30) < torch.tensor([[30], [11]]), torch.rand(2, 12, generator=draw) < 0.7
    expected = torch.zeros(2, 12, dtype=torch.bool)
    for row in range(2):
        words = there[row].nonzero().flatten()
        found = naive_raters(visual[row, exists[row]].numpy(), text[row, words].numpy())
        expected[row, words[found]] = True
    visual[~exists], text[~there] = float("nan"), float("nan")
    assert 0 < int(expected.sum()) < int(there.sum())
    assert torch.equal(raters(visual, exists, text, there), expected)
    monkeypatch.setattr("feathervlm.core.criteria.features.BLOCK", 100)
    assert torch.equal(raters(visual, exists, text, there), expected)


def test_equal_words_are_all_raters_and_no_words_are_none():
    visual, text = torch.randn(3, 9, 8), torch.randn(1, 1, 8).expand(3, 5, 8)
    there = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    assert torch.equal(raters(visual, torch.ones(3, 9, dtype=torch.bool), text, there), there)


V1 = {(300, 200, 110): (309, 204, 113), (303, 110, 36): (312, 117, 39), (238, 48, 26): (249, 55, 27)}
V1 |= {(66, 30, 17): (82, 32, 18)}
PLUS = [(300, 200, 118), (238, 108, 60), (246, 54, 28), (66, 34, 20)]


def counts(method):
    tokens = method.schedule().tokens_per_layer([(1, 24, 24)], 32)
    assert tokens[:3] == [576] * 3
    assert tokens[3:7] == [tokens[3]] * 4
    assert tokens[7:16] == [tokens[7]] * 9
    assert tokens[16:] == [tokens[16]] * 16
    return tokens[3], tokens[7], tokens[16]


@pytest.mark.parametrize(("table", "merged"), V1.items())
def test_counts_of_the_first_form(table, merged):
    """Merged tokens come on top of the table's: int(n / 10) + 1 of the n = int(.3 R) + 1 best of those that go."""
    method = SparseVLM(table=table)
    firsts = [stage.select.first for stage in method.schedule()]
    whole = ImageTokens(picture_of((1, 24, 24)), 576)
    assert tuple(first.size(whole) for first in firsts) == table
    assert counts(method) == merged
    rest, left = [], 576
    for kept, stay in zip(table, merged, strict=True):
        rest.append((int((left - kept) * 0.3) + 1) // 10 + 1)
        left = stay
    assert [stay - kept for kept, stay in zip(table, merged, strict=True)] == rest


@pytest.mark.parametrize("table", PLUS)
def test_counts_of_the_later_form(table):
    assert counts(SparseVLM(table=table, plus=True)) == table


def test_defaults_are_the_first_rows():
    assert counts(SparseVLM()) == V1[300, 200, 110]
    assert counts(SparseVLM(plus=True)) == PLUS[0]
    assert SparseVLM().schedule().average_tokens([(1, 24, 24)], 32) == 206.5
    assert [stage.positions for stage in SparseVLM().schedule()] == ["renumber"] * 3
    assert [stage.positions for stage in SparseVLM(plus=True).schedule()] == ["preserve"] * 3


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("average", [60, 192, 400, 576])
def test_one_number_moves_the_table_between_budgets(average, plus):
    method = SparseVLM(plus=plus).solve(average, [(1, 24, 24)], 32)
    assert method.schedule().average_tokens([(1, 24, 24)], 32) == pytest.approx(average, abs=0.5)
    assert SparseVLM(keep=300 / 576, plus=plus).schedule() == SparseVLM(plus=plus).schedule()
    keeps = [getattr(stage.select, "first", stage.select).keep for stage in SparseVLM(keep=0.25).schedule()]
    powers = np.log(keeps) / np.log([300 / 576, 200 / 576, 110 / 576])
    np.testing.assert_allclose(powers, np.log(0.25) / np.log(300 / 576))
    assert SparseVLM(keep=1e-20).schedule().tokens_per_layer([(1, 24, 24)], 32)[-1] >= 1


def test_the_schedule_reads_like_the_notes():
    best = Top(TextRaterAttention(), 66), Top(TextRaterAttention(), 30), Top(TextRaterAttention(), 17)
    assert SparseVLM(layers=(3, 7, 16), table=(66, 30, 17)).schedule() == Schedule(
        *(
            Stage(at, TopAndClusters(top), "renumber", Clusters(TopAndClusters(top)))
            for at, top in zip((3, 7, 16), best, strict=True)
        )
    )
    later = TextRaterAttention(heads=14 / 32, min_decay=0.1)
    assert SparseVLM(layers=(3, 7), table=(0.5, 0.2), plus=True).schedule() == Schedule(
        Stage(3, Top(later, 0.5)), Stage(7, Top(later, 0.2))
    )


@pytest.mark.parametrize(
    "spec",
    [
        "sparsevlm",
        "sparsevlm:table=66+30+17,positions=preserve",
        "sparsevlm:layers=2+4,keep=0.25,table=0.5+0.25,plus=true,text=all",
    ],
)
def test_written_forms_go_both_ways(spec):
    method = get(spec)
    assert get(str(method)) == method
    assert from_json(to_json(method.schedule())) == method.schedule()


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"plus": 1}, "plus=1"),
        ({"text": "before"}, "text='before'"),
        ({"positions": "shuffle"}, "positions='shuffle'"),
        ({"table": ()}, r"table=\(\)"),
        ({"table": (0.5, 2.5, 0.1)}, "table=2.5"),
        ({"table": (300, 200)}, "must be 2 layers"),
        ({"layers": (3, 7)}, "must be 3 layers"),
        ({"keep": 0}, "keep=0"),
        ({"keep": 0.5, "table": (300, 200, 110)}, "needs a table of fractions"),
        ({"keep": 0.5, "table": (1.0, 0.5, 0.2)}, "needs a table of fractions"),
    ],
)
def test_bad_parameters_are_named(parameters, named):
    with pytest.raises(PruningError, match=named):
        SparseVLM(**parameters)


@pytest.mark.parametrize("make", [{"heads": 0}, {"min_decay": 2.0}, {"text": "before"}], ids=str)
def test_bad_criteria_are_refused(make):
    with pytest.raises(PruningError):
        TextRaterAttention(**make)


def test_what_it_reads_is_described():
    description = SimpleNamespace(**describe(SparseVLM()))
    assert description.needs_text
    assert description.count_known
    assert [(stage["layer_of_32"], stage["tokens_of_576"], stage["merged"]) for stage in description.stages] == [
        (3, 309, True),
        (7, 204, True),
        (16, 113, True),
    ]
    assert "the words that the image is about in the layer before the cut, with RoPE" in description.needs[0]
    assert "embeddings of text" in description.needs[0]
    assert set(SparseVLM(plus=True).schedule().signals()) == {
        RaterAttention(heads=14 / 32, min_decay=0.1),
        Features("projected"),
        Text(Features("projected")),
        IsText("question"),
    }
