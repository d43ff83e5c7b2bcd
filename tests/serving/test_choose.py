"""What a server chooses with its own layers is what the pruned transformers model keeps."""

import pytest
import torch
from served_layers import served_layers

import feathervlm
import tiny_models as tiny
from feathervlm.core.layout import picture_of
from feathervlm.methods import get
from feathervlm.serving.choose import Chooser, ServedPrompt
from feathervlm.serving.decoder import ServedDecoder

PICTURE = picture_of((1, tiny.SIDE, tiny.SIDE))
FEATHER = "before-llm:method=(feather:layers=2+4,keep=0.4,fixed=true)"


def server(llava, **ranks):
    part, config = served_layers(llava, **ranks)
    return Chooser(ServedDecoder(part.layers, config))


def served_prompt(llava, inputs, row, text=True):
    """What a server knows of a prompt when its vision encoder has run."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    at = (ids == tiny.IMAGE).nonzero()[:, 0]
    with torch.no_grad():
        encoded = llava.model.get_image_features(inputs["pixel_values"][row : row + 1])
        embed = llava.get_input_embeddings()
        before, after = embed(ids[: at[0]]), embed(ids[at[-1] + 1 :])
    image = encoded.pooler_output[0]
    return ServedPrompt(image, PICTURE, before, after) if text else ServedPrompt(image, PICTURE)


def kept_in_place(llava, spec, prompt):
    """Return what the pruned transformers model keeps."""
    with feathervlm.prune(llava, spec) as pruning, torch.no_grad():
        llava(**tiny.batch(prompt))
        return pruning.report.stages[-1].kept[0]


PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(1, seed=2, before=9, after=2), tiny.prompt(1, seed=3, after=11)]
LATER = [
    FEATHER,
    "before-llm:method=(fastv:layer=2)",
    "before-llm:method=(fastv:layer=2,over=all)",
    "before-llm:method=(pyramiddrop:layers=1+3+4)",
    "before-llm:method=(dart:layer=4,keep=0.4,pivots=3,words=2)",
    "before-llm:method=(ivc-prune:layer=3,keep=0.4)",
    "before-llm:method=(v2drop:layers=1+3+5)",
    "before-llm:method=(before-llm:method=(fastv:layer=2))",
]
FIRST = [
    "cdpruner",
    "divprune:keep=0.25",
    "random:layer=0",
    "uniform:layer=0",
    "pool",
    "knn:layer=0,features=projected",
]


@pytest.mark.parametrize(
    ("text", "spec"), [*(("llama", spec) for spec in [*FIRST, *LATER]), *(("qwen3", spec) for spec in LATER[:3])]
)
def test_a_batch_keeps_what_each_prompt_keeps_in_transformers(spec, text):
    llava = tiny.llava(text)
    prompts = [served_prompt(llava, tiny.batch(prompt), 0) for prompt in PROMPTS]
    choices = server(llava).choose(get(spec).schedule(), prompts)
    for choice, prompt in zip(choices, PROMPTS, strict=True):
        assert torch.equal(choice.kept, kept_in_place(llava, spec, prompt))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("text", ["llama", "qwen3"])
def test_ranks_compare_all_heads_and_add_up_their_outputs(ranks, text):
    """Four query heads and two key-value heads: with four ranks two share a key-value head."""
    llava = tiny.llava(text)
    hidden = torch.randn(1, 7, 64)
    ids = torch.arange(7)[None]
    sent = []  # what every rank passes to its calls of gather

    def attention(rank, ranks):
        part, config = served_layers(llava, rank=rank, ranks=ranks)
        calls = iter(range(3))

        def gather(states):
            call = next(calls)
            if len(sent) < ranks:
                mine.append(states)
                return states
            return torch.cat([of_rank[call] for of_rank in sent], -1)

        decoder = ServedDecoder(part.layers, config, gather, rank)
        return decoder.layers[0].self_attn, decoder.rotary_emb(hidden, ids)

    with torch.no_grad():
        whole, tables = attention(0, 1)
        for rank in range(ranks):
            mine = []
            attention(rank, ranks)[0].qkv_proj(hidden)
            sent.append(mine)
        parts = [attention(rank, ranks)[0] for rank in range(ranks)]
        total = sum(part(hidden, None, tables) for part in parts)
        assert torch.allclose(total, whole(hidden, None, tables), atol=1e-5)
        again = attention(ranks - 1, ranks)[0].qkv_proj(hidden)
        assert torch.equal(again, whole.qkv_proj(hidden))


def test_merged_tokens_have_the_states_that_enter_the_first_layer():
    llava, spec = tiny.llava(), "pool:stride=2"
    entered = {}

    def record(module, args, kwargs):
        entered["states"] = args[0] if args else kwargs["hidden_states"]

    with feathervlm.prune(llava, spec), torch.no_grad():
        # Hooks that are prepended run first, and this one has to run after those that prune.
        norm = llava.model.language_model.layers[0].input_layernorm
        handle = norm.register_forward_pre_hook(lambda module, args: record(module, args, {}))
        llava(**tiny.batch(PROMPTS[1]))
        handle.remove()
    (choice,) = server(llava).choose(
        get(spec).schedule(), [served_prompt(llava, tiny.batch(PROMPTS[1]), 0, text=False)]
    )
    start = PROMPTS[1].index(tiny.IMAGE)
    assert torch.allclose(choice.states, entered["states"][0, start : start + len(choice.kept)], atol=1e-6)


def test_layers_of_another_structure_are_refused_by_what_they_lack():
    part, config = served_layers(tiny.llava())
    part.layers[2].pre_feedforward_layernorm = torch.nn.Identity()
    with pytest.raises(feathervlm.Unprunable, match="with pre_feedforward_layernorm"):
        ServedDecoder(part.layers, config)
    part, config = served_layers(tiny.llava())
    del part.layers[0].self_attn.qkv_proj
    with pytest.raises(feathervlm.Unprunable, match="without qkv_proj"):
        ServedDecoder(part.layers, config)
