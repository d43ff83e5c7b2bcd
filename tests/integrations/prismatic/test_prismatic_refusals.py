"""One sentence for everything that cannot be converted."""

import re

import pytest
import torch
from safetensors.torch import save_file
from synthetic import VISION_WIDTH, Run, cli, refused, timm_tower, tokenizer
from tokenizers import Tokenizer, models

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic.processor import COLON, check_vocabulary
from feathervlm.integrations.prismatic.registry import LANGUAGE_BACKBONES


def test_unknown_and_missing_tensors_are_all_listed(tmp_path):
    run = Run(tmp_path)
    model = run.model
    del model["llm_backbone"]["llm.model.layers.1.mlp.up_proj.weight"]
    del model["projector"]["projector.2.bias"]
    del run.tower["blocks.2.attn.qkv.bias"]
    model["llm_backbone"]["llm.model.layers.0.self_attn.q_norm.weight"] = torch.zeros(2)
    run.tower["blocks.0.ls1.gamma"] = torch.zeros(2)
    said = refused(run.write())
    unknown, missing = said.split("unknown ")[1].split("; missing ")
    assert unknown == "vision_backbone: blocks.0.ls1.gamma, llm_backbone: llm.model.layers.0.self_attn.q_norm.weight"
    assert missing.startswith(
        "vision_backbone: blocks.2.attn.qkv.bias, projector: projector.2.bias, "
        "llm_backbone: llm.model.layers.1.mlp.up_proj.weight);"
    )


@pytest.mark.parametrize("part", ["projector", "llm_backbone"])
def test_one_unknown_tensor_is_enough(tmp_path, part):
    run = Run(tmp_path)
    run.model[part]["more.weight"] = torch.zeros(2)
    assert f"(unknown {part}: more.weight)" in refused(run.write())


def test_every_tensor_is_needed(tmp_path):
    """Without any one of the kinds of tensors there is a refusal that names it."""
    tower, run = timm_tower("siglip"), Run(tmp_path).write()
    used = [name for name in tower if not name.startswith("attn_pool.") and not re.match(r"blocks\.[123]", name)]
    for name in used:
        save_file({key: t for key, t in tower.items() if key != name}, tmp_path / "vision.safetensors")
        assert f"missing vision_backbone: {name})" in refused(run)


def test_unknown_parts(tmp_path):
    run = Run(tmp_path)
    run.model["resampler"] = {"weight": torch.zeros(2)}
    assert "unknown model.resampler" in refused(run.write())


def test_a_missing_part(tmp_path):
    run = Run(tmp_path)
    del run.model["projector"]
    assert "missing model.projector" in refused(run.write())


def test_two_trained_vision_encoders(tmp_path):
    run = Run(tmp_path)
    run.model["vision_backbone"] = {"dino_featurizer.norm.weight": torch.zeros(2)}
    run.write()
    result = cli("convert-prismatic", tmp_path / "run", tmp_path / "out", "--tokenizer", tmp_path / "llm")
    assert result.exit_code == 2
    assert "dino_featurizer.norm.weight" in result.stderr


def test_vision_weights_twice_and_never(tmp_path):
    run = Run(tmp_path).write()
    never = cli("convert-prismatic", tmp_path / "run", tmp_path / "out", "--tokenizer", tmp_path / "llm")
    assert never.exit_code == 2
    assert "fetch timm/ViT-SO400M-14-SigLIP" in never.stderr
    (tmp_path / "twice").mkdir()
    run = Run(tmp_path / "twice")
    run.model["vision_backbone"] = {f"featurizer.{name}": tensor for name, tensor in run.tower.items()}
    assert "leave --vision out" in refused(run.write())


def test_shapes_that_do_not_fit(tmp_path):
    width = VISION_WIDTH["siglip"]
    run = Run(tmp_path, vision="siglip-vit-so400m-384px").write()
    assert f"pos_embed is 256 x {width} and should be 729 x {width}" in refused(run)
    (tmp_path / "wide").mkdir()
    run = Run(tmp_path / "wide")
    run.model["projector"]["projector.0.weight"] = torch.zeros(256, 1152)
    assert f"projector: projector.0.weight is 256 x 1152 and should be 256 x {width}" in refused(run.write())


def test_a_model_of_the_real_width_must_be_as_deep(tmp_path):
    run = Run(tmp_path)
    run.model["llm_backbone"] = {
        name: torch.zeros(4096) if "norm" in name else tensor for name, tensor in run.model["llm_backbone"].items()
    }
    run.model["llm_backbone"]["llm.model.embed_tokens.weight"] = torch.zeros(448, 4096)
    assert "llama2-7b-pure has 32 layers, and these weights of the same width have 4" in refused(run.write())


def test_weights_of_another_kind_of_encoder(tmp_path):
    said = refused(Run(tmp_path, "clip", "siglip-vit-so400m").write())
    assert "unknown vision_backbone: cls_token" in said
    assert "missing vision_backbone: patch_embed.proj.bias" in said


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_files_that_are_no_weights(tmp_path, suffix):
    run = Run(tmp_path).write()
    (tmp_path / f"bad{suffix}").write_bytes(b"nothing")
    assert "cannot be read" in refused(run, "--vision", tmp_path / f"bad{suffix}")
    (tmp_path / "empty").mkdir()
    assert "has none of model.safetensors" in refused(run, "--vision", tmp_path / "empty")


def test_a_checkpoint_that_is_none(tmp_path):
    run = Run(tmp_path).write()
    path = tmp_path / "run" / "checkpoints" / "latest-checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "latest-checkpoint.pt cannot be read" in refused(run)
    torch.save({"state_dict": {}}, path)
    assert "has no tensors under 'model'" in refused(run)
    path.unlink()
    assert "latest-checkpoint.pt cannot be read" in refused(run)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"arch": "no-align+fused-gelu-mlp"}, "its projector has three layers"),
        ({"arch": "linear"}, "a single layer"),
        ({"arch": "resampler"}, "arch_specifier 'resampler' is unknown"),
        ({"vision": "dinosiglip-vit-so-384px", "arch": "fused-gelu-mlp"}, "two vision encoders"),
        ({"vision": "dinoclip-vit-l-336px"}, "two vision encoders"),
        ({"vision": "dinov2-vit-l"}, "registers"),
        ({"vision": "in1k-vit-l"}, "ImageNet"),
        ({"vision": "siglip-vit-b16-224px"}, "is unknown; choose a model with one of siglip-vit-so400m,"),
        ({"llm": "phi-2-3b"}, "Phi-2"),
        ({"resize": "resize-more"}, "is unknown"),
    ],
)
def test_models_that_do_not_map(tmp_path, changes, why):
    assert why in refused(Run(tmp_path, **changes).write())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"model_id": 3}}'])
def test_configs_that_are_none(tmp_path, text):
    run = Run(tmp_path).write()
    (tmp_path / "run" / "config.json").write_text(text)
    assert "config.json" in refused(run)


@pytest.mark.parametrize(
    ("llm", "hub"), [("llama2-7b-pure", "meta-llama/Llama-2-7b-hf"), ("mistral-v0.1-7b-pure", "mistralai/Mistral")]
)
def test_without_a_tokenizer_it_says_which_to_fetch(tmp_path, llm, hub):
    Run(tmp_path, llm=llm).write()
    result = cli("convert-prismatic", tmp_path / "run", tmp_path / "out", "--vision", tmp_path / "vision.safetensors")
    assert result.exit_code == 2
    assert f"fetch the tokenizer.json of {hub}" in result.stderr


def test_a_directory_without_a_tokenizer(tmp_path):
    run = Run(tmp_path).write()
    assert "fetch the one of meta-llama/Llama-2-7b-hf" in refused(run, "--tokenizer", tmp_path)


def test_a_tokenizer_of_another_size(tmp_path):
    run = Run(tmp_path)
    llm = run.model["llm_backbone"]
    for name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
        llm[name] = torch.cat([llm[name], llm[name][:64]])
    assert "are not the checkpoint's 512 embeddings" in refused(run.write())


@pytest.mark.parametrize(("kind", "other"), [("llama", "mistral"), ("mistral", "llama")])
def test_tokenizers_of_llama_and_mistral_are_not_mistaken(kind, other):
    def words(colon):
        pieces = {f"piece{i}": i for i in range(32000) if i != colon} | {":": colon}
        return Tokenizer(models.BPE(vocab=pieces, merges=[]))

    llm = next(llm for llm in LANGUAGE_BACKBONES.values() if llm.kind == kind)
    check_vocabulary(words(COLON[kind]), 32064, llm)
    with pytest.raises(PruningError, match="but not the same; give that one"):
        check_vocabulary(words(COLON[other]), 32064, llm)


def test_a_tokenizer_that_marks_no_words(tmp_path):
    other = tokenizer(prepend=False)
    other.pre_tokenizer = None
    assert "does not mark words as Llama's does" in refused(Run(tmp_path, tokenizer=other).write())


def test_a_tokenizer_with_other_special_tokens(tmp_path):
    run = Run(tmp_path).write()
    path = tmp_path / "llm" / "tokenizer.json"
    path.write_text(path.read_text().replace("<s>", "<t>"))
    assert "does not begin with <unk>, <s>, </s>" in refused(run)
