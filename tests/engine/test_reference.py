"""FEATHER and its criteria against a slow batch-1 rewrite of the paper's algorithm on a bare Llama."""

from functools import cache
from math import isqrt, sqrt

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import feathervlm
import tiny_models as tiny
from feathervlm import VisualLayout

START, TEXT = 3, 7  # words before the image, words after it


@cache
def model(kv_heads, attention="sdpa"):
    return tiny.llama(attention, num_hidden_layers=20, num_key_value_heads=kv_heads)


def embeddings(tokens, seed, after=TEXT):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, START + tokens + after, 64, generator=generator)


def causal(length):
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


def image_scores(llama, layer, hidden, positions, rope, image):
    """Return the mean over heads of the last token's softmax over image keys, from this layer's own projections."""
    block, config = llama.model.layers[layer], llama.config
    normed = block.input_layernorm(hidden)
    query, key = (
        projection(normed).view(1, -1, heads, config.head_dim).transpose(1, 2)
        for projection, heads in (
            (block.self_attn.q_proj, config.num_attention_heads),
            (block.self_attn.k_proj, config.num_key_value_heads),
        )
    )
    if rope:
        query, key = apply_rotary_pos_emb(query, key, *llama.model.rotary_emb(hidden, positions))
    key = key.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=1)
    logits = query[:, :, -1:] @ key[:, :, image].transpose(-1, -2) / sqrt(config.head_dim)
    return logits.float().softmax(-1).mean(1)[0, 0]


def best(scores, count):
    return set(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


def grid(tokens, stride):
    side = isqrt(tokens)
    return {row * side + col for row in range(0, side, stride) for col in range(0, side, stride)}


# For each method the layers it prunes at, whether its scores are rotated (None: it has no scores), and the places
# among the survivors that it keeps.
REFERENCES = {
    "fastv:layer=3,keep=0.25": ([3], True, lambda stage, scores, left, total: best(scores, int(total * 0.25))),
    "fastv:layer=3,keep=0.25,rope=false": (
        [3],
        False,
        lambda stage, scores, left, total: best(scores, int(total * 0.25)),
    ),
    "uniform:layer=3,stride=2": ([3], None, lambda stage, scores, left, total: grid(total, 2)),
    "ensemble:layer=3,keep=0.25,stride=3": (
        [3],
        False,
        lambda stage, scores, left, total: best(scores, int(total * 0.25)) | grid(total, 3),
    ),
    "feather:layers=8+16,keep=0.3,stride=3": (
        [8, 16],
        False,
        lambda stage, scores, left, total: (
            best(scores, int(total * 0.3)) | grid(total, 3) if stage == 0 else best(scores, int(left * 0.3**2))
        ),
    ),
    "pyramiddrop:layers=5+10+15,keep=0.5,form=baseline": (
        [5, 10, 15],
        True,
        lambda stage, scores, left, total: best(scores, int(left * 0.5)),
    ),
}


@torch.no_grad()
def run(llama, inputs, tokens, at, choose):
    """Return the logits of the rows that stay if `choose` returns the rows to keep before each layer in `at`."""
    hidden, positions = inputs, torch.arange(inputs.shape[1])[None]
    previous, left = None, list(range(tokens))
    for index, block in enumerate(llama.model.layers):
        if index in at:
            image = range(START, START + len(left))
            places = choose(at.index(index), index - 1, *previous, left)
            rows = [*range(START), *(image[place] for place in places), *range(image.stop, hidden.shape[1])]
            hidden, positions = hidden[:, rows], positions[:, rows]
            left = [left[place] for place in places]
        previous = hidden, positions
        tables = llama.model.rotary_emb(hidden, positions)
        hidden = block(
            hidden, attention_mask=causal(hidden.shape[1]), position_ids=positions, position_embeddings=tables
        )
    return llama.lm_head(llama.model.norm(hidden))


def reference(llama, inputs, tokens, spec):
    """Return the logits of the rows that stay, and for each stage (scores, kept indices)."""
    at, rope, rule = REFERENCES[spec]
    stages = []

    def choose(stage, layer, hidden, positions, left):
        image = torch.arange(START, START + len(left))
        scores = None if rope is None else image_scores(llama, layer, hidden, positions, rope, image)
        places = sorted(rule(stage, scores, len(left), tokens))
        stages.append((scores, [left[place] for place in places]))
        return places

    return run(llama, inputs, tokens, at, choose), stages


def layout(inputs, tokens):
    mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    mask[:, START : START + tokens] = True
    return VisualLayout(mask, [[(1, isqrt(tokens), isqrt(tokens))]])


def agree(report, stages):
    for stage, (scores, kept) in zip(report.stages, stages, strict=True):
        assert stage.kept[0].tolist() == kept
        if scores is None:
            assert stage.scores is None
        else:
            torch.testing.assert_close(stage.scores[0], scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", REFERENCES)
@pytest.mark.parametrize(("tokens", "kv_heads"), [(81, 2), (81, 4), (576, 2), (576, 4)])
def test_forward_equals_the_papers_algorithm(spec, tokens, kv_heads):
    llama = model(kv_heads)
    for seed in range(3):
        inputs = embeddings(tokens, seed)
        logits, stages = reference(llama, inputs, tokens, spec)
        with feathervlm.prune(llama, spec, layout=layout(inputs, tokens)) as pruning, torch.no_grad():
            pruned = llama(inputs_embeds=inputs).logits
        agree(pruning.report, stages)
        torch.testing.assert_close(pruned[:, -TEXT:], logits[:, -TEXT:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", REFERENCES)
def test_generate_equals_greedy_decoding_by_the_papers_algorithm(spec, attention):
    tokens, steps, llama = 81, 5, model(2, attention)
    inputs = embeddings(tokens, 5)
    with feathervlm.prune(llama, spec, layout=layout(inputs, tokens)) as pruning:
        generated = llama.generate(
            inputs_embeds=inputs,
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    agree(pruning.report, reference(llama, inputs, tokens, spec)[1])
    kept = [stage.kept[0].tolist() for stage in pruning.report.stages]

    def choose(stage, layer, hidden, positions, left):
        return [left.index(token) for token in kept[stage]]

    # The prompt alone chose; what follows it is text.
    words = llama.get_input_embeddings()(generated.sequences[:, :-1])
    logits = run(llama, torch.cat([inputs, words], 1), tokens, REFERENCES[spec][0], choose)
    torch.testing.assert_close(torch.stack(generated.logits, 1), logits[:, -steps:], atol=1e-4, rtol=0)
