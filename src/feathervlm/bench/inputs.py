"""What a model is given: one prompt with pictures, repeated to a batch.

Knows shapes of inputs; knows neither time nor methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.inference import prompts

SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs of shape (1, sequence); all others belong to pictures and lie one behind the other."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sample.

    Attributes:
        inputs: the model's, for a batch of 1.
        visual: its visual tokens.
        pictures: how many it has.
    """

    inputs: dict[str, Tensor]
    visual: int
    pictures: int = 1

    @property
    def length(self) -> int:
        """Tokens, text included."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def tail(self) -> int:
        """Tokens behind the last run of equal ones: the text after the pictures."""
        ids = self.inputs["input_ids"][0]
        same = (ids[1:] == ids[:-1]).nonzero()
        return self.length - int(same[-1]) - 2 if len(same) else self.length

    def batch(self, size: int, ragged: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The prompt `size` times, each with a picture of its own, so that methods keep different tokens.

        Args:
            size: of the batch.
            ragged: every sample but the first of each four has less text at its end, padded on the left.
            device: to put it on.
            dtype: of what floats.
        """
        rows = {name: value for name, value in self.inputs.items() if name in SEQUENCES}
        rows.setdefault("attention_mask", torch.ones_like(rows["input_ids"]))
        shorter = [sample % 4 * (self.tail // 5) if ragged else 0 for sample in range(size)]
        given = {name: torch.cat([_shifted(row, by) for by in shorter]) for name, row in rows.items()}
        if not any(shorter) and bool(given["attention_mask"].all()):
            del given["attention_mask"]
        for name, value in self.inputs.items():
            if name not in SEQUENCES:
                given[name] = torch.cat([_another(value, sample) for sample in range(size)])
        return {
            name: value.to(device, dtype=dtype if value.is_floating_point() else None) for name, value in given.items()
        }


def _shifted(row: Tensor, by: int) -> Tensor:
    """The row without its last tokens, as many zeros in front."""
    return torch.cat([torch.zeros_like(row[:, :by]), row[:, : row.shape[1] - by]], 1)


def _another(value: Tensor, sample: int) -> Tensor:
    """Pixels turned round a little, so that every sample shows another picture; other tensors as they are."""
    return value.roll(3 * sample, -1) if value.is_floating_point() else value


def several(total: int, own: int) -> int:
    """How many pictures of `own` tokens make `total`.

    Raises:
        PruningError: if no number of them does.
    """
    if total % own or total < own:
        raise PruningError(
            f"{total} visual tokens cannot be had: a picture of this model has {own}; choose a multiple of that."
        )
    return total // own


def of_pictures(
    processor: Any, tokens: int | None, question: str, side: int, visual: Callable[[dict[str, Tensor]], int]
) -> Prompt:
    """A prompt of a real model, with as many pictures of noise as make so many visual tokens.

    Args:
        processor: the model's own.
        tokens: wanted; None: those of one picture.
        question: the text.
        side: of a picture, in pixels.
        visual: counts the visual tokens of inputs.

    Raises:
        PruningError: if no number of pictures makes that many.
    """
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    marker = "" if getattr(processor, "chat_template", None) else str(getattr(processor, "image_token", "<image>"))

    def made(count: int) -> dict[str, Tensor]:
        return dict(prompts.prepare(processor, [prompts.Prompt(marker * count + question, (picture,) * count)]))

    own = visual(single := made(1))
    count = 1 if tokens is None else several(tokens, own)
    inputs = single if count == 1 else made(count)
    return Prompt(inputs, visual(inputs), count)
