"""Presets: models by name with random weights and real dimensions, and prompts with any number of visual tokens.

Speed does not depend on the weights. The tokens that a method keeps do, and so does their number where it is not fixed.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
)

from feathervlm.bench.inputs import BenchPrompt
from feathervlm.core.errors import PruningError

PATCH = 14
LONGEST = 1 << 17
"""Number of positions of every decoder, more than any prompt here needs."""


@dataclass(frozen=True)
class Preset(ABC):
    """A model to build.

    Attributes:
        name: Name on the command line.
        about: Description in a few words.
        tokens: Visual tokens of its usual picture.
        text: Arguments of the decoder's config.
        vision: Arguments of the vision encoder's config.
    """

    name: str
    about: str
    tokens: int
    text: dict[str, Any] = field(repr=False)
    vision: dict[str, Any] = field(repr=False)

    @abstractmethod
    def config(self, tokens: int, layers: int | None = None) -> PreTrainedConfig:
        """Return the config for prompts with that many visual tokens.

        Args:
            tokens: Number of visual tokens.
            layers: Number of decoder layers; None for the preset's own.

        Raises:
            PruningError: If no picture has that many tokens.
        """

    @abstractmethod
    def prompt(self, tokens: int, text: int) -> BenchPrompt:
        """Return a prompt with that many visual tokens and that many text tokens.

        Raises:
            PruningError: If no picture has that many visual tokens.
        """

    def decoder(self, layers: int | None) -> dict[str, Any]:
        """Return the arguments of the decoder's config."""
        depth = {} if layers is None else {"num_hidden_layers": layers}
        return {**self.text, **depth, "max_position_embeddings": LONGEST}

    @property
    def image(self) -> int:
        """Token id of the image placeholder."""
        return int(self.text["vocab_size"]) - 1

    def ids(self, placeholders: list[int], text: int) -> torch.Tensor:
        """Return token ids of shape (1, sequence): the start token, the pictures, the question."""
        return torch.tensor([[1, *placeholders, *(5 + number % 200 for number in range(text - 1))]])


class Llava(Preset):
    """LLaVA 1.5: one square picture at any resolution, or several of the usual resolution."""

    def shape(self, tokens: int) -> tuple[int, int]:
        """Return the number of pictures, and the number of rows of each, which is also that of its columns."""
        side = isqrt(tokens)
        if side * side == tokens:
            return 1, side
        if tokens % self.tokens:
            more = -(-tokens // self.tokens) * self.tokens
            raise PruningError(
                f"{tokens} visual tokens are neither a square grid nor several pictures of {self.tokens}; choose "
                f"{side**2}, {(side + 1) ** 2} or {more}."
            )
        return tokens // self.tokens, isqrt(self.tokens)

    def config(self, tokens: int, layers: int | None = None) -> PreTrainedConfig:
        _, side = self.shape(tokens)
        return LlavaConfig(
            vision_config=CLIPVisionConfig(**self.vision, image_size=PATCH * side, patch_size=PATCH),
            text_config=LlamaConfig(**self.decoder(layers)),
            image_token_index=self.image,
            image_seq_length=side * side,
            tie_word_embeddings=bool(self.text.get("tie_word_embeddings", False)),
        )

    def prompt(self, tokens: int, text: int) -> BenchPrompt:
        pictures, side = self.shape(tokens)
        pixels = torch.randn(pictures, 3, PATCH * side, PATCH * side, generator=_seeded())
        return BenchPrompt(
            {"input_ids": self.ids([self.image] * tokens, text), "pixel_values": pixels}, tokens, pictures
        )


class LlavaNext(Preset):
    """LLaVA-NeXT: an overview and a square of tiles, all of 24 x 24 tokens, with a line break after each row."""

    SIDE = 24

    def tiles(self, tokens: int) -> int:
        """Return the number of rows of tiles, which is also that of its columns."""
        own = self.SIDE**2
        count = isqrt(max(tokens // own - 1, 0))
        if not count or tokens != own * (1 + count * count):
            possible = ", ".join(str(own * (1 + across * across)) for across in range(1, 5))
            raise PruningError(
                f"{tokens} visual tokens are not an overview of {own} and a square of such tiles; choose one of "
                f"{possible}."
            )
        return count

    def config(self, tokens: int, layers: int | None = None) -> PreTrainedConfig:
        side = PATCH * self.SIDE
        pixels = side * self.tiles(tokens)
        return LlavaNextConfig(
            vision_config=CLIPVisionConfig(**self.vision, image_size=side, patch_size=PATCH),
            text_config=LlamaConfig(**self.decoder(layers)),
            image_token_index=self.image,
            image_grid_pinpoints=[[pixels, pixels]],
        )

    def prompt(self, tokens: int, text: int) -> BenchPrompt:
        count, side = self.tiles(tokens), PATCH * self.SIDE
        breaks = self.SIDE * count
        pixels = torch.randn(1, 1 + count * count, 3, side, side, generator=_seeded())
        sizes = torch.tensor([[side * count, side * count]])
        ids = self.ids([self.image] * (tokens + breaks), text)
        return BenchPrompt({"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}, tokens)


class Qwen25VL(Preset):
    """Qwen2.5-VL: one picture of any shape, with four patches per token."""

    def shape(self, tokens: int) -> tuple[int, int]:
        """Return rows and columns of tokens, as near to a square as possible."""
        rows = next(rows for rows in range(isqrt(tokens), 0, -1) if not tokens % rows)
        if tokens // rows > 2 * rows:
            side = isqrt(tokens)
            raise PruningError(
                f"{tokens} visual tokens do not make a picture that is at most twice as wide as high; choose "
                f"{side**2} or {(side + 1) ** 2}."
            )
        return rows, tokens // rows

    def config(self, tokens: int, layers: int | None = None) -> PreTrainedConfig:
        self.shape(tokens)
        start = self.image - 3
        return Qwen2_5_VLConfig(
            text_config=self.decoder(layers),
            vision_config=self.vision,
            image_token_id=self.image,
            video_token_id=self.image - 1,
            vision_start_token_id=start,
            vision_end_token_id=start + 1,
        )

    def prompt(self, tokens: int, text: int) -> BenchPrompt:
        rows, cols = self.shape(tokens)
        start = self.image - 3
        ids = self.ids([start, *[self.image] * tokens, start + 1], max(text - 2, 1))
        pixels = torch.randn(4 * tokens, 3 * 2 * PATCH * PATCH, generator=_seeded())
        inputs = {
            "input_ids": ids,
            "mm_token_type_ids": (ids == self.image).int(),
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * cols]]),
        }
        return BenchPrompt(inputs, tokens)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _llama(width: int, inner: int, layers: int, heads: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _clip(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


VICUNA = _llama(4096, 11_008, 32, 32, 32_064, tied=False)
CLIP_LARGE = _clip(1024, 24, 16)
QWEN = {
    **_llama(3584, 18_944, 28, 28, 152_064, tied=False),
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
QWEN_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Llava("tiny", "12 layers of width 256: many tokens on a CPU", 576,
              _llama(256, 704, 12, 4, 8000, tied=True), _clip(128, 2, 2)),
        Llava("llava-170m", "a decoder of 170M parameters after a ViT-B/14", 576,
              _llama(768, 2048, 24, 12, 32_000, tied=True), _clip(768, 12, 12)),
        Llava("llava-1.5-7b", "Vicuna-7B after CLIP ViT-L/14", 576, VICUNA, CLIP_LARGE),
        LlavaNext("llava-next-7b", "the same with an overview and 2 x 2 tiles", 2880, VICUNA, CLIP_LARGE),
        Qwen25VL("qwen2.5-vl-7b", "Qwen2.5-7B after a ViT with windows, 1792 x 1792 pixels", 4096, QWEN, QWEN_VISION),
    )
}  # fmt: skip


def get(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        PruningError: If there is no such preset.
    """
    if name not in PRESETS:
        raise PruningError(f"There is no config {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
