"""Tokens that merge: a pruned model equals a plain run from that layer on with inputs that were merged by hand."""

import json
from dataclasses import dataclass
from functools import cache

import pytest
import torch

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import Grid, KNNDensity, LastTokenAttention, Random, Schedule, Stage, Top, Unprunable, VisualLayout
from feathervlm.core import Merger, Pool
from feathervlm.core.signals import Features
from feathervlm.methods import AveragePool

START, AFTER = 3, 6


@cache
def model(kind="llama", attention="sdpa"):
    return tiny.llama(attention, kind=kind)


def prompt_of(side, seed, images=1):
    """Return the embeddings of one prompt, its layout and the positions of each image."""
    length, tokens = START + images * (side**2 + 1) + AFTER, side**2
    embeds = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(seed))
    places = [torch.arange(tokens) + START + image * (tokens + 1) for image in range(images)]
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, torch.cat(places)] = True
    return embeds, VisualLayout(mask, [[(1, side, side)] * images]), places


def by_hand(llama, embeds, steps):
    """Return the logits of the last rows if `steps[at]` maps those that enter layer `at` to (rows, positions)."""
    hidden, positions = embeds, torch.arange(embeds.shape[1])
    for index, layer in enumerate(llama.model.layers):
        if index in steps:
            hidden, positions = steps[index](hidden[0])
            hidden = hidden[None]
        causal = torch.ones(len(positions), len(positions), dtype=torch.bool).tril()[None, None]
        tables = llama.model.rotary_emb(hidden, positions[None])
        hidden = layer(hidden, attention_mask=causal, position_ids=positions[None], position_embeddings=tables)
    return llama.lm_head(llama.model.norm(hidden))


def average(places, side, stride):
    """Pool with torch's own average pooling."""

    def merge(hidden):
        merged, left = hidden.clone(), torch.ones(len(hidden), dtype=torch.bool)
        for image in places:
            blocks = hidden[image].T.reshape(1, -1, side, side)
            means = torch.nn.functional.avg_pool2d(blocks, stride, ceil_mode=True)[0].flatten(1).T
            corners = image.view(side, side)[::stride, ::stride].flatten()
            left[image] = False
            left[corners] = True
            merged[corners] = means
        return merged[left], left.nonzero()[:, 0]

    return merge


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("side", "stride"), [(6, 2), (7, 2), (7, 3), (5, 8)])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_average_pooling_is_pooling_by_hand(kind, images, side, stride, at):
    llama, (embeds, layout, places) = model(kind), prompt_of(side, seed=side, images=images)
    with feathervlm.prune(llama, AveragePool(at, stride), layout=layout) as pruning:
        found = llama(inputs_embeds=embeds).logits
    expected = by_hand(llama, embeds, {at: average(places, side, stride)})
    torch.testing.assert_close(found[:, -AFTER:], expected[:, -AFTER:], atol=1e-4, rtol=0)
    assert pruning.report.tokens_per_layer[0][at] == images * len(range(0, side, stride)) ** 2


def test_gradients_are_those_of_pooling_by_hand():
    llama, (embeds, layout, places) = model(), prompt_of(7, seed=1)
    one, other = (embeds.clone().requires_grad_() for _ in range(2))
    with feathervlm.prune(llama, AveragePool(2), layout=layout):
        llama(inputs_embeds=one).logits[0, -1].square().sum().backward()
    by_hand(llama, other, {2: average(places, 7, 2)})[0, -1].square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-4)
    assert one.grad[0, START : START + 49].abs().sum(1).min() > 0


def test_half_precision_sums_in_single():
    llama, (embeds, layout, places) = tiny.llama().to(torch.bfloat16), prompt_of(32, seed=2)
    seen = []
    handle = llama.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with feathervlm.prune(llama, AveragePool(0, 32), layout=layout), torch.no_grad():
        llama(inputs_embeds=embeds.to(torch.bfloat16))
    handle.remove()
    mean = embeds.to(torch.bfloat16)[0, places[0]].double().mean(0).to(torch.bfloat16)
    expected = llama.model.layers[0].input_layernorm(mean)
    torch.testing.assert_close(seen[0][0, START], expected, atol=0.02, rtol=0.02)


@dataclass(frozen=True)
class Attended(Merger):
    """Merge into the kept token with the most similar projected features, weighted by the prompt's attention."""

    def signals(self):
        return (Features("projected"), *LastTokenAttention().signals())

    def targets(self, tokens, kept):
        features = tokens.signals.read(Features("projected"))
        fits = kept[:, None] & (tokens.geometry.image[:, :, None] == tokens.geometry.image[:, None])
        cosine = torch.nn.functional.cosine_similarity(features[:, :, None], features[:, None], dim=-1)
        return cosine.masked_fill(~fits, -2).argmax(-1)

    def shares(self, tokens, groups):
        return tokens.score(LastTokenAttention())


@torch.no_grad()
def test_a_merger_of_ones_own_reads_signals_and_merges_what_is_left():
    llama, (embeds, layout, places) = model(), prompt_of(6, seed=3, images=2)
    attend = Schedule(Stage(1, Random(0.6)), Stage(3, Top(LastTokenAttention(), 30)))
    schedule = Schedule(Stage(1, Random(0.6)), Stage(3, Grid(3), merge=Attended()))
    with feathervlm.prune(llama, attend, layout=layout) as pruning:
        llama(inputs_embeds=embeds)
    first, second = pruning.report.stages
    scores = torch.zeros(72).index_copy(0, first.kept[0], second.scores[0])
    with feathervlm.prune(llama, schedule, layout=layout) as pruning:
        found = llama(inputs_embeds=embeds).logits
    first, second = pruning.report.stages
    entered, kept = first.kept[0], second.kept[0]
    assert first.groups is None
    assert second.scores is None  # the merger's criterion did not choose
    features = torch.nn.functional.normalize(embeds[0, torch.cat(places)], dim=-1)
    groups = []
    for token in entered.tolist():
        fits = [other for other in kept.tolist() if other // 36 == token // 36]
        best = max(fits, key=lambda other: float(features[token] @ features[other]))
        groups.append(token if token in fits else best)
    assert second.groups[0].tolist() == groups

    slots = torch.cat(places)
    text = set(range(embeds.shape[1])) - set(slots.tolist())
    entering, staying = (sorted(text | set(slots[some].tolist())) for some in (entered, kept))
    row = {place: number for number, place in enumerate(entering)}

    def drop(hidden):
        return hidden[entering], torch.tensor(entering)

    def merge(hidden):
        merged, sums = hidden.clone(), {target: torch.zeros(64) for target in groups}
        for token, target in zip(entered.tolist(), groups, strict=True):
            sums[target] += scores[token] * hidden[row[int(slots[token])]]
        for target, total in sums.items():
            merged[row[int(slots[target])]] = total
        return merged[[row[place] for place in staying]], torch.tensor(staying)

    expected = by_hand(llama, embeds, {1: drop, 3: merge})
    torch.testing.assert_close(found[:, -AFTER:], expected[:, -AFTER:], atol=1e-4, rtol=0)


def test_the_report_says_who_went_where():
    llava = tiny.llava()
    with feathervlm.prune(llava, Schedule(Stage(1, Grid(2), merge=Pool(4)), Stage(3, Grid(4)))) as pruning:
        llava(**tiny.batch(tiny.prompt(1, seed=4), tiny.prompt(0, seed=5)))
    first, second = pruning.report.stages
    corners = [row // 4 * 24 + col // 4 * 4 for row in range(6) for col in range(6)]
    kept = first.kept[0].tolist()
    assert first.groups[0].tolist() == [token if token in kept else corners[token] for token in range(36)]
    assert first.groups[0].dtype == torch.long
    assert first.groups[1].tolist() == []
    assert second.groups is None
    stages = json.loads(json.dumps(pruning.report.to_dict()))["stages"]
    assert stages[0]["groups"] == [first.groups[0].tolist(), []]
    assert stages[1]["groups"] is None


def test_tokens_without_a_target_are_dropped():
    llava = tiny.llava()
    select = Top(KNNDensity(features="projected"), 3)
    with feathervlm.prune(llava, Schedule(Stage(2, select, merge=Pool(2)))) as pruning:
        llava(**tiny.batch(tiny.prompt(1, seed=6)))
    stage = pruning.report.stages[0]
    groups, kept = stage.groups[0].tolist(), stage.kept[0].tolist()
    assert set(groups) == {-1, *kept}
    assert [groups[token] for token in kept] == kept
    assert groups.count(-1) >= 36 - 3 * 4


@pytest.mark.parametrize(("name", "last"), [("qwen3_vl", 2), ("granite4_vision", 4)])
def test_features_added_later_refuse_merged_tokens_before(name, last):
    case = FAMILY_CASES[name]
    llm = case.model()
    with pytest.raises(Unprunable, match=f"until after layer {last}.*merge at layer {last + 1} or later") as refusal:
        feathervlm.prune(llm, AveragePool(layer=last))
    assert "\n" not in str(refusal.value)
    inputs = case.inputs(case.prompts()[0])
    with feathervlm.prune(llm, AveragePool(layer=last + 1)) as pruning, torch.no_grad():
        llm(**inputs)
    assert pruning.report.pruned
