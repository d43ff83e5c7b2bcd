"""Runs of placeholders: which tokens of a prompt stand for one image or video, and which of them show a part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import Picture, Plane, tokens_of


@dataclass(frozen=True)
class PlaceholderRun:
    """The placeholders of one image or video.

    Attributes:
        picture: The planes of the image, in the order of their tokens.
        text: Numbers of the placeholders that show no part of the image: line breaks and separators.
    """

    picture: Picture
    text: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """The number of placeholders."""
        return tokens_of(self.picture) + len(self.text)

    def visual(self) -> list[bool]:
        """Return for each placeholder whether it shows a part of the image."""
        visual = [True] * self.length
        for place in self.text:
            visual[place] = False
        return visual


def grid(rows: int, cols: int, frames: int = 1) -> PlaceholderRun:
    """Return the run of an image in one plane, in raster order."""
    return PlaceholderRun((Plane((frames, rows, cols)),))


def square(tokens: int) -> PlaceholderRun:
    """Return the run of an image in one square plane.

    Args:
        tokens: Number of tokens of the image.

    Raises:
        Unprunable: If the number is not a square.
    """
    side = isqrt(tokens)
    if side * side != tokens:
        raise Unprunable(
            f"An image of {tokens} tokens is not a square grid; pass the shape to prune() as "
            "layout=VisualLayout(mask, grids)."
        )
    return grid(side, side)


def runs_by_sample(placeholders: Tensor, runs: Sequence[PlaceholderRun], repeats: int) -> list[list[PlaceholderRun]]:
    """Return the runs of every sample, which follow from its number of placeholders.

    Args:
        placeholders: True on placeholders, bool (batch, sequence).
        runs: Runs of all images of the batch, in order.
        repeats: Number of consecutive samples that have the same images (beams and several answers).

    Raises:
        PruningError: If a sample has placeholders that its images do not explain.
    """
    if len(placeholders) == 1:  # transformers itself checks that the numbers of placeholders and features agree
        return [list(runs)]
    samples: list[list[PlaceholderRun]] = []
    remaining = iter(runs)
    for sample, count in enumerate(placeholders.sum(1).tolist()):
        if sample % repeats:
            samples.append(samples[-1])
            continue
        images = []
        while count > 0:
            run = next(remaining, None)
            if run is None:
                raise PruningError(
                    f"Sample {sample} has more image placeholders than there are image features; make the prompt with "
                    "the model's own processor."
                )
            images.append(run)
            count -= run.length
        samples.append(images)
        if count:
            raise PruningError(
                f"Sample {sample} has {-count} image placeholders fewer than its images have tokens; make the prompt "
                "with the model's own processor."
            )
    return samples


def in_prompt_order(
    placeholders: Sequence[Tensor], runs: Sequence[list[list[PlaceholderRun]]]
) -> list[list[tuple[int, PlaceholderRun]]]:
    """Return the runs of several modalities, each with the number of its modality, in the order of each prompt.

    Args:
        placeholders: For each modality, True on its placeholders, bool (batch, sequence).
        runs: For each modality, the runs of every sample.
    """
    samples = []
    for sample in range(len(placeholders[0])):
        starts = []
        for number, (mask, of_modality) in enumerate(zip(placeholders, runs, strict=True)):
            places, start = mask[sample].nonzero()[:, 0].tolist(), 0
            for run in of_modality[sample]:
                starts.append((places[start], number, run))
                start += run.length
        samples.append([(number, run) for _, number, run in sorted(starts, key=lambda start: start[0])])
    return samples


def visual_placeholders(placeholders: Tensor, samples: Sequence[Sequence[PlaceholderRun]]) -> Tensor:
    """Return which placeholders show a part of an image, bool (batch, sequence); arbitrary on other tokens."""
    visual = [[shown for run in sample for shown in run.visual()] for sample in samples]
    longest = max(map(len, visual))
    padded = [numbers + [False] * (longest - len(numbers)) for numbers in visual]
    table = torch.tensor(padded, device=placeholders.device)
    return table.gather(1, (placeholders.cumsum(1) - 1).clamp(0, longest - 1))
