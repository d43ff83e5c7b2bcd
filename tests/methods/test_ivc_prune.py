"""IVC-Prune against NumPy that follows the note's formulas, in exact indices, and its signals against the model's own.

Random pictures of 7 x 7 tokens, a prompt of a few words, and values of four heads.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import Schedule, Stage, Top, VisualLayout
from feathervlm.core import PruningError, Unprunable
from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.criteria.rotary import RotaryPhase
from feathervlm.core.criteria.values import ValueForeground
from feathervlm.core.signals import IsText, RotaryTable, Text, Values
from feathervlm.engine.rotary import rotary_rows
from feathervlm.methods import IVCPrune, get
from feathervlm.methods.describe import describe

SIDE, HEADS, DIM, WORDS, BEFORE, CHANNELS = 7, 4, 8, 9, 4, 16


class Prompt:
    """Random signals of one sample: `BEFORE` words, the pictures, and the other words."""

    def __init__(self, seed, grids=((1, SIDE, SIDE),), spare=3, quantum=None):
        draw = np.random.default_rng(seed)
        self.grids, self.spare = list(grids), spare  # further places in a batch hold no text
        self.sizes = [frames * rows * cols for frames, rows, cols in grids]
        self.n = sum(self.sizes)
        self.values = draw.standard_normal((self.n, HEADS, DIM)).astype(np.float32)
        self.text = draw.standard_normal((WORDS, HEADS, DIM)).astype(np.float32)
        if quantum:  # equal tokens
            self.values, self.text = np.full_like(self.values, quantum), np.full_like(self.text, quantum)
        frequency = 10000.0 ** (-np.arange(CHANNELS // 2) / (CHANNELS // 2))
        angle = (BEFORE + np.arange(self.n))[:, None] * np.concatenate([frequency, frequency])
        self.tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}

    def read(self, signal):
        if isinstance(signal, IsText):
            place = torch.arange(WORDS + self.spare)
            return (place < WORDS)[None] & (place >= (BEFORE if signal.text == "question" else 0))[None]
        if isinstance(signal, Text):
            return torch.cat([torch.tensor(self.text), torch.full((self.spare, HEADS, DIM), float("nan"))])[None]
        return torch.tensor(self.values if isinstance(signal, Values) else self.tables[signal.of])[None]

    def candidates(self, present=None):
        mask = torch.ones(1, self.n, dtype=torch.bool)
        geometry = VisualLayout(mask, [self.grids]).geometry()
        return Candidates(geometry, mask if present is None else present, self)

    def kept(self, method, present=None):
        (stage,) = method.schedule()
        return stage.select.select(self.candidates(present))[0].nonzero().flatten().tolist()


def best(scores, count):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def received(queries, values):
    """Mean over queries and heads of the softmax over the tokens, by loops."""
    total = np.zeros(len(values))
    for query in queries.astype(np.float64):
        for head in range(HEADS):
            logits = values[:, head].astype(np.float64) @ query[head] / np.sqrt(DIM)
            weights = np.exp(logits - logits.max())
            total += weights / weights.sum()
    return total / len(queries) / HEADS


def foreground(values, text, seeds=0.01):
    first = received(text, values)
    chosen = best(first, max(int(len(values) * seeds), 1))
    return received(np.concatenate([text, values[chosen]]), values)


def ivc_prune(p, keep, share, seeds=0.01):
    found, start = [], 0
    for size in p.sizes:
        part = slice(start, start + size)
        first = set()
        for wave in ("cos", "sin"):
            means = p.tables[wave][part].astype(np.float64).mean(1).astype(np.float32)
            first |= set(best(means, max(int(size * share), 1)))
        scores = foreground(p.values[part], p.text[BEFORE:], seeds)
        order = sorted(range(size), key=lambda i, first=first, scores=scores: (i not in first, -scores[i], i))
        found += [start + i for i in sorted(order[: max(int(size * keep), 1)])]
        start += size
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("keep", "share", "seeds"), [(0.5, 0.1, 0.01), (0.28, 0.05, 0.01), (0.4, 0.02, 0.2)])
def test_it_keeps_the_tokens_of_the_formulas(seed, keep, share, seeds):
    for grids in ([(1, 7, 7)], [(1, 7, 7), (1, 3, 5)], [(2, 4, 3)]):
        p = Prompt(seed, grids)
        assert p.kept(IVCPrune(keep=keep, share=share, seeds=seeds)) == ivc_prune(p, keep, share, seeds)


def test_scores_are_the_logarithms_of_the_formula():
    p = Prompt(7)
    scores = p.candidates().score(ValueForeground())[0].exp().numpy()
    np.testing.assert_allclose(scores, foreground(p.values, p.text[BEFORE:]), rtol=1e-5)
    scores = p.candidates().score(ValueForeground(0.1, text="all"))[0].exp().numpy()
    np.testing.assert_allclose(scores, foreground(p.values, p.text, 0.1), rtol=1e-5)
    assert scores.sum() == pytest.approx(1, abs=1e-5)


def test_seeds_change_what_is_foreground():
    changed = 0
    for seed in range(4):
        p = Prompt(seed)
        once = received(p.text[BEFORE:], p.values)
        changed += best(once, 10) != best(p.candidates().score(ValueForeground(0.1))[0].tolist(), 10)
    assert changed


def test_coordinates_do_not_depend_on_the_picture_or_the_text():
    first = [set(Prompt(seed).kept(IVCPrune(keep=8, share=4))) for seed in range(3)]
    assert first[0] == first[1] == first[2]
    assert first[0] == set(Prompt(0).kept(IVCPrune(keep=8, share=4, seeds=0.5)))


def test_equal_values_leave_the_lowest_indices():
    p = Prompt(0, quantum=0.5)
    coordinates = set(p.kept(IVCPrune(keep=8, share=4)))
    kept = p.kept(IVCPrune(keep=20, share=4))
    rest = [i for i in range(p.n) if i not in coordinates]
    assert kept == sorted(coordinates | set(rest[: 20 - len(coordinates)]))


def test_one_token_and_none():
    assert Prompt(0, [(1, 1, 1)]).kept(IVCPrune()) == [0]
    geometry = VisualLayout(torch.zeros(1, 4, dtype=torch.bool), [[]]).geometry()
    nothing = SimpleNamespace(read=lambda signal: torch.zeros(1, 0, CHANNELS))
    (stage,) = IVCPrune().schedule()
    assert stage.select.select(Candidates(geometry, geometry.exists, nothing)).shape == (1, 0)


def test_absent_tokens_count_for_nothing():
    p = Prompt(3)
    present = torch.ones(1, p.n, dtype=torch.bool)
    present[0, 5:15] = False
    left = present[0].nonzero().flatten().tolist()
    smaller = SimpleNamespace(values=p.values[left], text=p.text)
    scores = p.candidates(present).score(ValueForeground())[0][left].exp().numpy()
    np.testing.assert_allclose(scores, foreground(smaller.values, smaller.text[BEFORE:]), rtol=1e-5)
    p.values[5:15] = np.nan
    assert set(p.kept(IVCPrune(), present)) <= set(left)


class Note(Criterion):
    """Notes signals of a real model, and ranks by index."""

    def __init__(self, *asked):
        self.asked, self.found = asked, {}

    def signals(self):
        return self.asked

    def score(self, tokens):
        self.found.update({signal: tokens.signals.read(signal).clone() for signal in self.asked})
        return torch.zeros_like(tokens.present, dtype=torch.float32)


def noted(model, inputs, *signals):
    """What the stage at layer 3 reads."""
    note = Note(*signals)
    with torch.no_grad(), feathervlm.prune(model, Schedule(Stage(3, Top(note, 0.5)))):
        model(**inputs)
    return note.found


@pytest.mark.parametrize("text", ["llama", "qwen3", "phi3"])
def test_values_are_those_that_the_layer_caches(text):
    model, prompts = tiny.llava(text), [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3)]
    inputs = tiny.batch(*prompts)
    found = noted(model, inputs, Values(), Text(Values()), IsText("all"))
    with torch.no_grad():
        cached = model(**inputs, use_cache=True).past_key_values.layers[2].values.transpose(1, 2)
    for row, ids in enumerate(inputs["input_ids"]):
        visual = ids == tiny.IMAGE
        torch.testing.assert_close(found[Values()][row, : int(visual.sum())], cached[row, visual])
        words = found[Text(Values())][row][found[IsText("all")][row]]
        torch.testing.assert_close(words, cached[row, ~visual & inputs["attention_mask"][row].bool()])


def test_tables_are_those_of_the_positions_that_the_model_assigns():
    model, prompts = tiny.llava(), [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3)]
    inputs = tiny.batch(*prompts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = noted(model, inputs, RotaryTable("cos"), RotaryTable("sin"))
    tables = model.get_decoder().rotary_emb(torch.zeros(1), inputs["position_ids"])
    for wave, table in zip(("cos", "sin"), tables, strict=True):
        for row, ids in enumerate(inputs["input_ids"]):
            visual = ids == tiny.IMAGE
            assert torch.equal(found[RotaryTable(wave)][row, : int(visual.sum())], table[row, visual])


def test_positions_that_count_padding_are_counted_from_the_prompt():
    model, prompts = tiny.llava(), [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3)]
    found = noted(model, tiny.batch(*prompts), RotaryTable("cos"), RotaryTable("sin"))
    alone = noted(model, tiny.batch(prompts[0]), RotaryTable("cos"), RotaryTable("sin"))
    for signal, table in alone.items():
        torch.testing.assert_close(found[signal][:1, : tiny.SIDE**2], table, atol=1e-5, rtol=0)


def test_complex_tables_tell_the_same():
    angle, start = torch.randn(1, 5, 8, dtype=torch.float64), torch.tensor([1])
    tables = torch.polar(torch.ones_like(angle), angle)
    assert torch.allclose(rotary_rows(None, 0, tables, "cos", start), (angle - angle[:, 1:2]).cos())
    assert torch.allclose(rotary_rows(None, 0, tables, "sin", start), (angle - angle[:, 1:2]).sin())


def test_the_model_keeps_what_numpy_keeps():
    """From the model's own caches and tables, without any of our taps."""
    model, method = tiny.llava(), IVCPrune(layer=3, keep=0.4)
    prompts = [tiny.prompt(2, seed=3), tiny.prompt(0, seed=4), tiny.prompt(1, seed=5, after=2)]
    inputs = tiny.batch(*prompts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        cached = model(**inputs, use_cache=True).past_key_values.layers[2].values.transpose(1, 2)
        with feathervlm.prune(model, method) as pruning:
            model(**inputs)
    tables = model.get_decoder().rotary_emb(torch.zeros(1), inputs["position_ids"])
    for row, ids in enumerate(inputs["input_ids"]):
        visual, count = ids == tiny.IMAGE, prompts[row].count(tiny.IMAGE)
        if not count:
            assert pruning.report.stages[0].kept[row].tolist() == []
            continue
        after = torch.arange(len(ids)) > visual.nonzero().max()
        values, text = (cached[row, which].numpy() for which in (visual, after))
        waves = {wave: table[row, visual].numpy() for wave, table in zip(("cos", "sin"), tables, strict=True)}
        found = []
        for start in range(0, count, tiny.SIDE**2):
            part, size = slice(start, start + tiny.SIDE**2), tiny.SIDE**2
            first = set()
            for wave in waves.values():
                first |= set(best(wave[part].astype(np.float64).mean(1).astype(np.float32), int(size * 0.1)))
            scores = received_by(values[part], text)
            order = sorted(range(size), key=lambda i, first=first, scores=scores: (i not in first, -scores[i], i))
            found += [start + i for i in sorted(order[: int(size * 0.4)])]
        assert pruning.report.stages[0].kept[row].tolist() == found


def received_by(values, text):
    """`foreground` for two key-value heads of 16 numbers."""

    def mean(queries):
        logits = np.einsum("qhd,nhd->qhn", queries.astype(np.float64), values.astype(np.float64)) / 4
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)).mean((0, 1))

    seed = best(mean(text), 1)
    return mean(np.concatenate([text, values[seed]]))


def test_a_model_that_rotates_nothing_is_refused():
    model, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))

    def without(module, args, kwargs):
        return args, {**kwargs, "position_embeddings": None}

    handle = model.get_decoder().layers[3].register_forward_pre_hook(without, with_kwargs=True)
    try:
        with (
            feathervlm.prune(model, IVCPrune(layer=3)),
            pytest.raises(Unprunable, match=r"Layer 3 of Llava\w+ has no rotary position embedding"),
        ):
            model(**inputs)
    finally:
        handle.remove()


def test_the_image_may_be_last_in_no_prompt():
    model = tiny.llava()
    inputs = tiny.batch([1, 7, 8, *[tiny.IMAGE] * tiny.SIDE**2])
    with feathervlm.prune(model, IVCPrune(layer=3)), pytest.raises(Unprunable, match="ends inside an image"):
        model(**inputs)


def test_it_is_found_described_and_solved():
    method = get("ivc-prune:share=0.05,keep=0.28")
    assert method == IVCPrune(share=0.05, keep=0.28)
    (stage,) = describe(IVCPrune())["stages"]
    assert (stage["layer_of_32"], stage["tokens_of_576"], stage["exact"], stage["cache"]) == (16, 288, True, "all")
    assert describe(IVCPrune())["needs_text"]
    solved = IVCPrune().solve(400, grids=[(1, 24, 24)], depth=32)
    assert solved.schedule().average_tokens([(1, 24, 24)], depth=32) == pytest.approx(400, abs=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IVCPrune(share=0), "share=0"),
        (lambda: IVCPrune(seeds=2), "seeds=2"),
        (lambda: IVCPrune(keep=1.5), "keep=1.5"),
        (lambda: RotaryPhase("tan"), "of='tan'"),
        (lambda: ValueForeground(text="front"), "text='front'"),
        (lambda: Text(RotaryTable()), "Text has no"),
    ],
)
def test_meaningless_parameters_are_errors(make, message):
    with pytest.raises(PruningError, match=message):
        make()
