"""Small Prismatic runs with random weights, in files and names as on the hub, and the command that converts them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from feathervlm.cli.main import app

BLOCKS, LAYERS = 4, 4
VISION_WIDTH = {"siglip": 144, "clip": 128}
WIDTH, MLP, HEAD = 256, 96, 128

SENTENCES = [
    "In: Where is the dog?\nOut: The dog is on the left.",
    'In: Based on the image, is this statement "True" or "False"?\nOut: True',
    "A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: A cat.",
    "[INST] Is it In or Out of the house? [/INST] In.",
]


def noise(*shape, scale=0.3, mean=0.0, generator):
    return torch.randn(*shape, generator=generator) * scale + mean


def timm_tower(kind, patches=256, blocks=BLOCKS, seed=1):
    """A vision transformer in timm's names, with the pooling that LLaVA does not use."""
    width, hidden = VISION_WIDTH[kind], 80
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, **more):
        return noise(*shape, generator=generator, **more)

    clip = kind == "clip"
    tower = {
        "pos_embed": draw(1, patches + clip, width),
        "patch_embed.proj.weight": draw(width, 3, 14, 14, scale=0.05),
        "norm.weight": draw(width, mean=1.0),
        "norm.bias": draw(width),
    }
    if clip:
        tower |= {"cls_token": draw(1, 1, width), "norm_pre.weight": draw(width, mean=1.0)}
        tower |= {"norm_pre.bias": draw(width), "head.weight": draw(32, width)}
    else:
        tower |= {"patch_embed.proj.bias": draw(width), "attn_pool.latent": draw(1, 1, width)}
        tower |= {"attn_pool.q.weight": draw(width, width)}
    for i in range(blocks):
        for norm in ("norm1", "norm2"):
            tower[f"blocks.{i}.{norm}.weight"] = draw(width, mean=1.0)
            tower[f"blocks.{i}.{norm}.bias"] = draw(width)
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            tower[f"blocks.{i}.{name}.weight"] = draw(rows, columns, scale=0.15)
            tower[f"blocks.{i}.{name}.bias"] = draw(rows)
    return tower


def projector(kind, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "projector.0.weight": noise(WIDTH, VISION_WIDTH[kind], scale=0.1, generator=generator),
        "projector.0.bias": noise(WIDTH, generator=generator),
        "projector.2.weight": noise(WIDTH, WIDTH, scale=0.1, generator=generator),
        "projector.2.bias": noise(WIDTH, generator=generator),
    }


def language(rows, key_heads=2, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, **more):
        return noise(*shape, generator=generator, **more)

    tensors = {
        "llm.model.embed_tokens.weight": draw(rows, WIDTH, scale=1.0),
        "llm.model.norm.weight": draw(WIDTH, mean=1.0),
        "llm.lm_head.weight": draw(rows, WIDTH, scale=0.1),
    }
    for i in range(LAYERS):
        layer = f"llm.model.layers.{i}."
        for part in "qo":
            tensors[f"{layer}self_attn.{part}_proj.weight"] = draw(WIDTH, WIDTH, scale=0.1)
        for part in "kv":
            tensors[f"{layer}self_attn.{part}_proj.weight"] = draw(key_heads * HEAD, WIDTH, scale=0.1)
        for part in ("gate", "up"):
            tensors[f"{layer}mlp.{part}_proj.weight"] = draw(MLP, WIDTH, scale=0.1)
        tensors[f"{layer}mlp.down_proj.weight"] = draw(WIDTH, MLP, scale=0.1)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{norm}.weight"] = draw(WIDTH, mean=1.0)
    return tensors


def tokenizer(*, prepend=True, extra=()):
    """Llama's kind: byte fallback, a mark in front of words.

    Args:
        prepend: Whether the mark is a normalizer, as in the files of the hub; otherwise as transformers 5 writes it.
        extra: Added tokens.
    """
    special = ["<unk>", "<s>", "</s>"]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first", split=False)
    letters = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], show_progress=False
    )
    made.train_from_iterator([word for text in SENTENCES * 2 for word in text.split()], letters)
    plain = json.loads(made.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["id"] < 3]
    made = Tokenizer.from_str(json.dumps(plain))
    if prepend:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made.pre_tokenizer = None
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(list(extra))
    return made


@dataclass
class Run:
    """A run's folder, to be written by `write`; whatever is changed before that is written changed."""

    folder: Path
    kind: str = "siglip"
    vision: str = "siglip-vit-so400m"
    llm: str = "llama2-7b-pure"
    resize: str = "resize-naive"
    arch: str = "no-align+gelu-mlp"
    tokenizer: Tokenizer = field(default_factory=tokenizer)
    tower: dict | None = None
    model: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        self.vocabulary = self.tokenizer.get_vocab_size(with_added_tokens=False)
        rows = (self.vocabulary + 1 + 63) // 64 * 64
        self.tower = self.tower or timm_tower(self.kind)
        self.model = self.model or {
            "projector": projector(self.kind),
            "llm_backbone": language(rows, 1 if self.llm.startswith("mistral") else 2),
        }

    def write(self):
        run = self.folder / "run"
        (run / "checkpoints").mkdir(parents=True)
        config = {
            "model_id": "tiny+7b",
            "arch_specifier": self.arch,
            "vision_backbone_id": self.vision,
            "llm_backbone_id": self.llm,
            "image_resize_strategy": self.resize,
            "llm_max_length": 2048,
            "type": "one-stage+7b",
        }
        (run / "config.json").write_text(json.dumps({"model": config, "seed": 7}))
        kept = {part: {name: t.to(self.dtype) for name, t in tensors.items()} for part, tensors in self.model.items()}
        torch.save({"model": kept}, run / "checkpoints" / "latest-checkpoint.pt")
        (self.folder / "llm").mkdir()
        self.tokenizer.save(str(self.folder / "llm" / "tokenizer.json"))
        save_file(self.tower, self.folder / "vision.safetensors")
        return self

    def arguments(self, out="out"):
        return [
            "convert-prismatic", self.folder / "run", self.folder / out,
            "--tokenizer", self.folder / "llm", "--vision", self.folder / "vision.safetensors",
        ]  # fmt: skip


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(run, *more, out="out"):
    """The one sentence; nothing is written."""
    before = sorted(path.name for path in run.folder.iterdir())
    result = cli(*run.arguments(out), *more)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert sorted(path.name for path in run.folder.iterdir()) == before
    return result.stderr
