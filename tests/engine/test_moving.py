"""Moved positions: a pruned model equals the stock model with these position ids."""

from functools import cache
from math import ceil

import pytest
import torch
import transformers as tf
from transformers import DynamicCache

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import Grid, LastTokenAttention, Schedule, Stage, Top, Unprunable, VisualLayout, methods
from feathervlm.core import KeepAll
from laws import TOLERANCE, generate, layout_of

SIDE, IMAGE = tiny.SIDE, tiny.SIDE**2
TEXTS = ["llama", "qwen3", "mistral", "phi3"]


@cache
def llava(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


@cache
def bare(kind):
    return tiny.llama(kind=kind)


def images(row):
    """Return the positions of the visual tokens of a sample, image by image."""
    places = row.nonzero()[:, 0].tolist()
    return [places[start : start + IMAGE] for start in range(0, len(places), IMAGE)]


def shuffled(row, seed):
    """Return the token whose position each token of a sample takes if those of every image exchange theirs."""
    taken, draws = torch.arange(len(row)), torch.rand(int(row.sum()), generator=torch.Generator().manual_seed(seed))
    for number, places in enumerate(images(row)):
        order = torch.sort(draws[number * IMAGE : (number + 1) * IMAGE], stable=True).indices.tolist()
        taken[[places[token] for token in order]] = torch.tensor(places)
    return taken


def moved(policy, row, kept):
    """Return the positions that stay, and their ids, of a sample with some visual tokens kept."""
    visual = row.nonzero()[:, 0].tolist()
    left = [place for place in range(len(row)) if not row[place] or visual.index(place) in kept]
    if policy == "renumber":
        return left, list(range(len(left)))
    ids = dict(zip(left, left, strict=True))
    for places in images(row):
        first, last, here = places[0], places[-1], [place for place in places if place in ids]
        for place in here:
            ids[place] = ceil((place - first) * (last - first) / (here[-1] - first)) + first
    return left, list(ids.values())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("count", [1, 2])
def test_shuffling_is_giving_permuted_position_ids(text, attention, count):
    model, inputs = llava(text, attention), tiny.batch(tiny.prompt(count, seed=count))
    ids = shuffled(inputs["input_ids"][0] == tiny.IMAGE, 3)[None]
    assert not torch.equal(ids, torch.arange(ids.shape[1])[None])
    with torch.no_grad():
        expected = model(**inputs, position_ids=ids).logits
        with feathervlm.prune(model, "shuffled-positions:seed=3"):
            assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_shuffling_a_padded_batch_is_giving_permuted_position_ids(side):
    model = llava()
    inputs = tiny.batch(tiny.prompt(2, seed=4), tiny.prompt(0, seed=5), tiny.prompt(1, seed=6), side=side)
    ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    taken = torch.stack([shuffled(row == tiny.IMAGE, 1) for row in inputs["input_ids"]])
    with torch.no_grad():
        expected = model(**inputs, position_ids=ids.gather(1, taken)).logits
        with feathervlm.prune(model, methods.ShuffledPositions(seed=1)):
            found = model(**inputs, position_ids=ids).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl-video", "qwen3_vl", "glm4v"])
def test_shuffling_exchanges_all_axes_of_a_position(name):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(case.prompts()[0])
    seen = []
    rotary = model.get_decoder().rotary_emb
    handle = rotary.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    with feathervlm.prune(model, methods.ShuffledPositions(seed=2)) as pruning, torch.no_grad():
        found = model(**inputs).logits
    handle.remove()
    ids, layout = seen[0], pruning.report.record.layout
    assert ids.shape[0] == 3
    taken, slots, start = torch.arange(ids.shape[-1]), layout.positions()[0], 0
    draws = torch.rand(layout.width, generator=torch.Generator().manual_seed(2))
    for picture in layout.pictures[0]:
        here = slots[start : start + sum(plane.size for plane in picture)]
        taken[here[torch.sort(draws[start : start + len(here)], stable=True).indices]] = here
        start += len(here)
    with torch.no_grad():
        expected = model(**inputs, position_ids=ids[..., taken]).logits
    torch.testing.assert_close(found, expected, atol=case.tolerance, rtol=1e-3)
    assert (found - model(**inputs).logits).abs().max() > 1e-3


def prompt_of(pictures, seed):
    """Return the embeddings of one prompt and its layout."""
    ids = torch.tensor([tiny.prompt(pictures, seed=seed)])
    embeds = torch.randn(1, ids.shape[1], 64, generator=torch.Generator().manual_seed(seed))
    return embeds, layout_of(ids, tiny.IMAGE, SIDE)


def by_hand(model, embeds, at, left, ids):
    """Return the logits of the rows `left`, the only ones that run from layer `at` on, at positions of their own."""
    hidden, own = embeds, torch.arange(embeds.shape[1])[None]
    for index, layer in enumerate(model.model.layers):
        if index == at:
            hidden, own = hidden[:, left], torch.tensor([ids])
        causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()[None, None]
        tables = model.model.rotary_emb(hidden, own)
        hidden = layer(hidden, attention_mask=causal, position_ids=own, position_embeddings=tables)
    return model.lm_head(model.model.norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("policy", ["renumber", "stretch"])
@pytest.mark.parametrize(("pictures", "at"), [(1, 0), (2, 0), (2, 3)])
def test_other_policies_are_giving_those_position_ids(policy, kind, pictures, at):
    model, select = bare(kind), Grid(3) | feathervlm.Random(0.3, seed=4)
    embeds, layout = prompt_of(pictures, seed=7)
    with feathervlm.prune(model, Schedule(Stage(at, select, policy)), layout=layout) as pruning:
        found = model(inputs_embeds=embeds).logits
    left, ids = moved(policy, layout.mask[0], pruning.report.stages[0].kept[0].tolist())
    assert ids != left
    expected = by_hand(model, embeds, at, left, ids)
    torch.testing.assert_close(found[:, -3:], expected[:, -3:], atol=1e-5, rtol=0)
    if at == 0:
        stock = model(inputs_embeds=embeds[:, left], position_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(found[:, -3:], stock[:, -3:], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["preserve", "renumber", "stretch"])
def test_a_padded_batch_moves_every_sample_as_if_alone(policy):
    model, schedule = llava(), Schedule(Stage(2, Grid(3) | feathervlm.Random(0.3), policy))
    prompts = [tiny.prompt(2, seed=8), tiny.prompt(0, seed=9), tiny.prompt(1, seed=10)]
    for side in ("left", "right"):
        with feathervlm.prune(model, schedule):
            together = model(**tiny.batch(*prompts, side=side)).logits
            for row, prompt in enumerate(prompts):
                alone = model(**tiny.batch(prompt)).logits[0, -3:]
                end = len(prompt) if side == "right" else together.shape[1]
                torch.testing.assert_close(together[row, end - 3 : end], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["renumber", "stretch"])
@pytest.mark.parametrize("at", [0, 3])
def test_decoding_goes_on_where_the_policy_says(policy, at):
    model, steps = bare("llama"), 5
    embeds, layout = prompt_of(2, seed=11)
    with feathervlm.prune(model, Schedule(Stage(at, Grid(3), policy)), layout=layout) as pruning:
        out = model.generate(
            inputs_embeds=embeds,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    left, ids = moved(policy, layout.mask[0], pruning.report.stages[0].kept[0].tolist())
    assert ids != left
    whole = torch.cat([embeds, model.get_input_embeddings()(out.sequences[:, :-1])], 1)
    left += range(embeds.shape[1], whole.shape[1])
    ids += range(ids[-1] + 1, ids[-1] + steps)
    expected = by_hand(model, whole, at, left, ids)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected[:, -steps:], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_the_images_of_a_later_turn_are_shuffled_among_themselves(text):
    model, first = llava(text), tiny.batch(tiny.prompt(1, seed=12))
    second, past = tiny.batch(tiny.prompt(2, seed=13)), DynamicCache()
    both = torch.cat([first["input_ids"], second["input_ids"]], 1)
    with feathervlm.prune(model, methods.ShuffledPositions(seed=5)):
        model(**first, past_key_values=past)
        mask = torch.ones_like(both)
        found = model(**{**second, "attention_mask": mask}, past_key_values=past).logits
    taken = [shuffled(inputs["input_ids"][0] == tiny.IMAGE, 5) for inputs in (first, second)]
    ids = torch.cat([taken[0], taken[1] + len(taken[0])])[None]
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    expected = model(input_ids=both, pixel_values=pixels, position_ids=ids).logits[:, len(taken[0]) :]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_later_turn_may_stretch():
    model, schedule = llava(), Schedule(Stage(0, Grid(4), "stretch"))
    first, second = tiny.batch(tiny.prompt(0, seed=14)), tiny.batch(tiny.prompt(1, seed=15))
    both = {**second, "input_ids": torch.cat([first["input_ids"], second["input_ids"]], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    with feathervlm.prune(model, schedule):
        past = model(**first, use_cache=True).past_key_values
        found = model(**{**second, "attention_mask": both["attention_mask"]}, past_key_values=past).logits
        expected = model(**both).logits[:, -found.shape[1] :]
    torch.testing.assert_close(found[:, -4:], expected[:, -4:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layer", ["K-1", "K"])
def test_later_scores_see_the_positions_that_were_moved(layer):
    model, inputs = tiny.llava("qwen3", attention="eager"), tiny.batch(tiny.prompt(2, seed=16))
    visual = inputs["input_ids"][0] == tiny.IMAGE
    ids = shuffled(visual, 0)[None]
    attentions = model(**inputs, position_ids=ids, output_attentions=True).attentions[2 if layer == "K-1" else 3]
    stages = Stage(0, KeepAll(), "shuffle"), Stage(3, Top(LastTokenAttention(over="all", layer=layer), 0.3))
    with feathervlm.prune(model, Schedule(*stages)) as pruning:
        model(**inputs)
    scores = pruning.report.stages[1].scores[0]
    torch.testing.assert_close(scores, attentions[0, :, -1, visual].mean(0), atol=1e-6, rtol=1e-5)


def test_decoding_after_a_shuffle_has_no_hooks():
    model, inputs, seen = llava(), tiny.batch(tiny.prompt(1, seed=17)), []
    with feathervlm.prune(model, methods.ShuffledPositions()), torch.no_grad():
        past = model(**inputs, use_cache=True).past_key_values
        layer = model.model.language_model.layers[5]
        handle = layer.register_forward_pre_hook(lambda *_: seen.append(len(layer._forward_pre_hooks)))
        model(input_ids=torch.tensor([[9]]), past_key_values=past)
        handle.remove()
    assert seen == [1]


@pytest.mark.parametrize("policy", ["renumber", "stretch"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "ernie4_5_vl_moe", "cohere_compass"])
def test_positions_of_several_axes_are_no_line(policy, name):
    model = FAMILY_CASES[name].model()
    for schedule in (
        Schedule(Stage(2, Grid(2), policy)),
        methods.BeforeLLM(methods.FasterVLM(layer=2, positions=policy)),
    ):
        with pytest.raises(Unprunable, match=f"positions={policy!r}; use positions='preserve'"):
            feathervlm.prune(model, schedule)


def test_learned_positions_cannot_be_moved():
    config = tf.OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    )
    layout = VisualLayout(torch.tensor([[False, True, True, False]]), [[(1, 1, 2)]])
    with pytest.raises(Unprunable, match="positions='shuffle'; use positions='preserve'"):
        feathervlm.prune(tf.OPTForCausalLM(config), methods.ShuffledPositions(), layout=layout)


def test_a_stretch_of_two_kinds_of_tables_generates():
    case = FAMILY_CASES["gemma3"]
    model, inputs = case.model(), case.inputs(case.prompts()[0])
    with feathervlm.prune(model, Schedule(Stage(4, feathervlm.Random(0.5), "stretch"))):
        stretched = generate(model, inputs, tokens=3)[1]
    with feathervlm.prune(model, Schedule(Stage(4, feathervlm.Random(0.5)))):
        assert (stretched - generate(model, inputs, tokens=3)[1]).abs().max() > 1e-3
