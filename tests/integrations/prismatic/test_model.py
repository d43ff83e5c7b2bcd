"""Names, sizes and configs, also of the real models: their shapes without their weights."""

import pytest
import torch
import transformers as tf
from synthetic import Run, timm_tower

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic import Sources, conversion, convert, model, names
from feathervlm.integrations.prismatic.names import Move
from feathervlm.integrations.prismatic.registry import LLMS, TOWERS, Recipe

VOCABULARY = 32000


def empty(*shape):
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def real_tower(kind, patches):
    """Shapes of SigLIP So400m or CLIP ViT-L, in timm's names."""
    width, hidden, blocks = (1152, 4304, 27) if kind == "siglip" else (1024, 4096, 24)
    small = {"siglip": 144, "clip": 128}[kind]
    sizes = {small: width, 3 * small: 3 * width, 80: hidden}
    return {
        name: empty(*(sizes.get(size, size) for size in tensor.shape))
        for name, tensor in timm_tower(kind, patches, blocks).items()
        if not name.startswith(("attn_pool", "head"))
    }


def real_llm(width, hidden, layers, keys):
    tensors = {}
    for name in names.language(layers):
        part = name.rsplit(".", 2)[1]
        shapes = {"down_proj": (width, hidden), "gate_proj": (hidden, width), "up_proj": (hidden, width)}
        shapes |= {"k_proj": (keys, width), "v_proj": (keys, width), "q_proj": (width, width), "o_proj": (width, width)}
        shapes |= {"embed_tokens": (VOCABULARY + 64, width), "lm_head": (VOCABULARY + 64, width)}
        tensors[name] = empty(*shapes.get(part, (width,)))
    return tensors


def real(tower_id, llm_id, hidden, keys):
    tower, llm = TOWERS[tower_id], LLMS[llm_id]
    recipe = Recipe("real", tower_id, tower, llm_id, llm, "resize-naive", 2048)
    checkpoint = {
        "projector": {
            "projector.0.weight": empty(llm.width, tower.width),
            "projector.0.bias": empty(llm.width),
            "projector.2.weight": empty(llm.width, llm.width),
            "projector.2.bias": empty(llm.width),
        },
        "llm_backbone": real_llm(llm.width, hidden, llm.layers, keys),
    }
    found = model.parts(checkpoint, real_tower(tower.kind, tower.patches), recipe)
    return model.assemble(found, recipe, VOCABULARY + 1)


@pytest.mark.parametrize(
    ("tower_id", "llm_id", "hidden", "keys", "llm_heads", "tower_parameters", "llm_parameters"),
    [
        ("siglip-vit-so400m-384px", "llama2-7b-pure", 11008, 4096, (32, 32), 412_442_352 + 473 * 1152, 6_738_415_616),
        ("clip-vit-l-336px", "llama2-13b-pure", 13824, 5120, (40, 40), 303_507_456, 13_015_864_320),
        ("siglip-vit-so400m", "mistral-v0.1-7b-pure", 14336, 1024, (32, 8), 412_442_352, 7_241_732_096),
    ],
)
def test_the_real_models_are_what_they_are_known_as(
    tower_id, llm_id, hidden, keys, llm_heads, tower_parameters, llm_parameters
):
    made = real(tower_id, llm_id, hidden, keys)
    text, vision = made.config.text_config, made.config.vision_config
    assert (text.num_attention_heads, text.num_key_value_heads) == llm_heads
    assert vision.num_attention_heads == 16
    assert made.config.image_seq_length == {384: 729, 336: 576, 224: 256}[vision.image_size]
    counted = sum(parameter.numel() for parameter in made.model.vision_tower.parameters())
    assert counted == tower_parameters
    added = 2 * 64 * text.hidden_size
    llm = sum(parameter.numel() for parameter in (*made.model.language_model.parameters(), *made.lm_head.parameters()))
    assert llm == llm_parameters + added


def test_the_config_says_what_the_original_does(tmp_path):
    Run(tmp_path).write()
    made = convert(Sources(tmp_path / "run", tmp_path / "llm", tmp_path / "vision.safetensors"), tmp_path / "out")
    config = tf.AutoConfig.from_pretrained(made.out)
    assert config.architectures == ["LlavaForConditionalGeneration"]
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "full")
    assert (config.vision_config.hidden_act, config.vision_config.vision_use_head) == ("gelu", False)
    assert config.image_token_id == made.image_token == 421
    assert config.text_config.vocab_size == 448
    assert tf.GenerationConfig.from_pretrained(made.out).eos_token_id == 2


def test_shards(tmp_path, monkeypatch):
    Run(tmp_path).write()
    sources = Sources(tmp_path / "run", tmp_path / "llm", tmp_path / "vision.safetensors")
    whole = tf.AutoModelForImageTextToText.from_pretrained(convert(sources, tmp_path / "out").out).state_dict()
    monkeypatch.setattr(conversion, "SHARD", "1MB")
    made = convert(sources, tmp_path / "shards")
    assert "model.safetensors.index.json" in made.files
    parts = tf.AutoModelForImageTextToText.from_pretrained(made.out).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("clip", [False, True])
def test_no_two_tensors_go_to_the_same_place(clip):
    moves = names.timm_tower(3, clip=clip) | names.projector() | names.language(3)
    targets = [target for move in moves.values() for target in move.targets]
    assert len(set(targets)) == len(targets)
    other = names.transformers_tower(3, clip=clip)
    assert {target for move in other.values() for target in move.targets} <= set(targets)


def test_a_move_cuts_and_flattens():
    tensor = torch.arange(12.0).reshape(6, 2)
    cut = Move(("a", "b", "c")).apply(tensor)
    assert [cut[name].tolist() for name in "abc"] == [tensor[i : i + 2].tolist() for i in (0, 2, 4)]
    assert Move(("a",), leading=1).apply(tensor[None])["a"].tolist() == tensor.tolist()
    for move, wrong in ((Move(("a", "b")), torch.zeros(3)), (Move(("a",), leading=1), torch.zeros(3, 2))):
        with pytest.raises(ValueError, match=r"cannot be cut|does not begin"):
            move.apply(wrong)


def test_a_tensor_that_cannot_be_cut_is_named(tmp_path):
    run = Run(tmp_path)
    run.tower["pos_embed"] = run.tower["pos_embed"][0]
    run.write()
    with pytest.raises(PruningError, match=r"pos_embed of shape 256 x 144 does not begin"):
        convert(Sources(tmp_path / "run", tmp_path / "llm", tmp_path / "vision.safetensors"), tmp_path / "out")
