"""A converted model against a plain one, put together here from the checkpoint's own tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import save_file
from synthetic import BLOCKS, HEAD, LAYERS, MLP, WIDTH, Run, timm_tower
from torch import Tensor

import feathervlm
from feathervlm.integrations.prismatic import Sources, convert

TOLERANCE = 1e-5


def erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def features(tower: dict, pixels: Tensor, *, clip: bool, activation, last: int) -> Tensor:
    """Patch features after block `last`: (images, patches, width)."""
    tower = {name: tensor.double() for name, tensor in tower.items()}
    head = 64 if clip else 72
    epsilon = 1e-5 if clip else 1e-6

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * tower[f"{name}.weight"] + tower[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tower[f"{name}.weight"].T + tower[f"{name}.bias"]

    side = pixels.shape[-1] // 14
    cut = pixels[..., : side * 14, : side * 14].unfold(2, 14, 14).unfold(3, 14, 14)  # images, colours, rows, cols, y, x
    x = torch.einsum("ncijyx,dcyx->nijd", cut, tower["patch_embed.proj.weight"]).flatten(1, 2)
    if clip:
        x = torch.cat([tower["cls_token"].expand(len(x), -1, -1), x], 1) + tower["pos_embed"]
        x = norm(x, "norm_pre")
    else:
        x = x + tower["patch_embed.proj.bias"] + tower["pos_embed"]
    for i in range(last + 1):
        block = f"blocks.{i}."
        q, k, v = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(head)).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{block}attn.proj")
        x = x + linear(activation(linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    return x[:, 1:] if clip else x


def reference(run: Run, pixels: Tensor, ids: list[int], *, activation=None, last: int = BLOCKS - 2) -> Tensor:
    """Logits of [start] + patches + text, whose ids are given: (positions, rows)."""
    clip, model = run.kind == "clip", run.model
    activation = activation or (quick_gelu if clip else erf_gelu)
    seen = features(run.tower, pixels, clip=clip, activation=activation, last=last)
    projector = {name: tensor.double() for name, tensor in model["projector"].items()}
    hidden = erf_gelu(seen @ projector["projector.0.weight"].T + projector["projector.0.bias"])
    seen = hidden @ projector["projector.2.weight"].T + projector["projector.2.bias"]
    tensors = {name.removeprefix("llm."): tensor for name, tensor in model["llm_backbone"].items()}
    mistral = run.llm.startswith("mistral")
    sizes = {
        "vocab_size": len(tensors["lm_head.weight"]),
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // HEAD,
        "num_key_value_heads": len(tensors["model.layers.0.self_attn.k_proj.weight"]) // HEAD,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-5,
    }
    llm = tf.MistralForCausalLM(tf.MistralConfig(**sizes)) if mistral else tf.LlamaForCausalLM(tf.LlamaConfig(**sizes))
    llm.load_state_dict(tensors)
    llm.double().eval()
    words = llm.get_input_embeddings()(torch.tensor([ids]))
    with torch.no_grad():
        return llm(inputs_embeds=torch.cat([words[:, :1], seen, words[:, 1:]], 1)).logits[0]


def converted(run: Run, **changes):
    sources = {"vision": run.folder / "vision.safetensors", "tokenizer": run.folder / "llm", **changes}
    convert(Sources(run.folder / "run", **sources), run.folder / "out")
    model, info = tf.AutoModelForImageTextToText.from_pretrained(
        run.folder / "out", dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def picture(run: Run, seed: int = 5) -> Tensor:
    side = {"siglip-vit-so400m-384px": 384, "clip-vit-l-336px": 336}.get(run.vision, 224)
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEXT = [1, 300, 301, 310, 17, 320]


def logits(model, pixels: Tensor) -> Tensor:
    image = model.config.image_token_id
    ids = torch.tensor([[TEXT[0], *[image] * model.config.image_seq_length, *TEXT[1:]]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits[0]


def distance(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.mark.parametrize(
    ("kind", "vision", "llm"),
    [
        ("siglip", "siglip-vit-so400m", "llama2-7b-pure"),
        ("clip", "clip-vit-l", "vicuna-v15-13b"),
        ("siglip", "siglip-vit-so400m", "mistral-v0.1-7b-pure"),
    ],
)
def test_logits_are_those_of_the_parts(tmp_path, kind, vision, llm):
    run = Run(tmp_path, kind, vision, llm).write()
    model, pixels = converted(run), picture(run)
    mine = logits(model, pixels)
    assert distance(mine, reference(run, pixels, TEXT)) < TOLERANCE
    # The reference is one that can tell: another block or another activation is another model.
    assert distance(mine, reference(run, pixels, TEXT, last=BLOCKS - 1)) > 100 * TOLERANCE
    assert distance(mine, reference(run, pixels, TEXT, activation=tanh_gelu)) > 10 * TOLERANCE


def test_the_papers_picture_has_729_patches_and_a_rest_that_is_not_seen(tmp_path):
    run = Run(tmp_path, vision="siglip-vit-so400m-384px", tower=timm_tower("siglip", 729)).write()
    model, pixels = converted(run), picture(run)
    assert model.config.image_seq_length == 729
    mine = logits(model, pixels)
    assert distance(mine, reference(run, pixels, TEXT)) < TOLERANCE
    pixels[..., 378:, :], pixels[..., 378:] = 0, 0
    assert distance(mine, logits(model, pixels)) == 0


def test_a_trained_vision_encoder_comes_from_the_checkpoint(tmp_path):
    run = Run(tmp_path)
    frozen, trained = run.tower, timm_tower("siglip", seed=9)
    run.model["vision_backbone"] = {f"featurizer.{name}": tensor for name, tensor in trained.items()}
    run.write()
    model, pixels = converted(run, vision=None), picture(run)
    run.tower = trained
    assert distance(logits(model, pixels), reference(run, pixels, TEXT)) < TOLERANCE
    run.tower = frozen
    assert distance(logits(model, pixels), reference(run, pixels, TEXT)) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_vision_weights_of_every_origin_give_the_same_model(tmp_path, kind):
    """timm's file, open_clip's whole model around it, a pickle, and transformers' own directory."""
    vision = {"siglip": "siglip-vit-so400m", "clip": "clip-vit-l"}[kind]
    run = Run(tmp_path, kind, vision).write()
    model = converted(run)
    wanted = model.state_dict()
    mine = {name.removeprefix("model.vision_tower."): t.float() for name, t in wanted.items() if "vision_tower" in name}
    origins = {"trunk": {f"visual.trunk.{name}": tensor for name, tensor in run.tower.items()}}
    origins["trunk"] |= {"text.token_embedding.weight": torch.zeros(3, 4), "logit_scale": torch.zeros(1)}
    origins["infix"] = {f"vision_model.{name}": tensor for name, tensor in mine.items()}
    origins["infix"] |= {"text_model.final_layer_norm.weight": torch.zeros(4), "logit_scale": torch.zeros(1)}
    origins["plain"] = mine
    for name, tensors in origins.items():
        (tmp_path / name).mkdir()
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name / "model.safetensors")
    torch.save(run.tower, tmp_path / "tower.bin")
    for number, origin in enumerate([*(tmp_path / name for name in origins), tmp_path / "tower.bin"]):
        made = convert(Sources(tmp_path / "run", tmp_path / "llm", origin), tmp_path / f"other{number}")
        assert "blocks.0.norm1.weight" not in made.unused
        other = tf.AutoModelForImageTextToText.from_pretrained(made.out, dtype=torch.float64).state_dict()
        assert wanted.keys() == other.keys()
        assert all(torch.equal(wanted[name], other[name]) for name in wanted), origin


def test_weights_keep_the_checkpoints_type(tmp_path):
    run = Run(tmp_path, dtype=torch.bfloat16).write()
    made = convert(Sources(tmp_path / "run", tmp_path / "llm", tmp_path / "vision.safetensors"), tmp_path / "out")
    assert made.dtype == "bfloat16"
    model = tf.AutoModelForImageTextToText.from_pretrained(made.out, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    given = run.model["llm_backbone"]["llm.lm_head.weight"].bfloat16()
    assert torch.equal(model.lm_head.weight, given)


@pytest.mark.parametrize("llm", ["llama2-7b-pure", "mistral-v0.1-7b-pure"])
def test_a_converted_model_can_be_pruned(tmp_path, llm):
    run = Run(tmp_path, llm=llm).write()
    model, pixels = converted(run), picture(run)
    full = logits(model, pixels)
    with feathervlm.prune(model, "feather") as pruning:
        pruned = logits(model, pixels)
    # 256 patches, of which 6 x 6 lie on the grid of every third row and column, before layer 1 of 4.
    first = pruning.report.stages[0]
    assert first.layer == 1
    assert int(256 * 0.3) <= len(first.kept[0]) <= int(256 * 0.3) + 36
    assert distance(full, pruned) > TOLERANCE
    with feathervlm.prune(model, "feather:keep=1.0"):
        assert distance(full, logits(model, pixels)) == 0
