"""Stage 1: the vision encoder is trained on the labels of generated scenes.

There are two kinds of targets. Dense: each patch predicts the colour, shape, size, digit and box of its object, and
whether it contains the object's centre, as in detection pretraining. Global: the mean of a random tenth of the patches
predicts the background and the number of objects of each colour and shape, so that every token also has information on
the whole picture, as in image-text pretraining (cf. FLIP, arXiv 2212.00794). The heads are not used afterwards.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from feathervlm.embedded.questions import BIN, BINS
from feathervlm.embedded.scenes import BACKGROUNDS, CLUTTERED, COLOURS, SEEN, SHAPES, SIDE, SIZES, Scene, draw
from training.loop import Batch, Figures, Plan, train
from training.machine import autocast, best_device

MOST = 4
"""Largest count; higher counts have the same label."""

DENSE = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES),
    "digit": 10,
    "left": BINS,
    "top": BINS,
    "right": BINS,
    "bottom": BINS,
    "centre": 2,
}
GLOBAL = {"background": len(BACKGROUNDS)} | dict.fromkeys((*COLOURS, *SHAPES), MOST + 1)
NOTHING = -100
SEEDS = {"train": 1, "held_out": 2}
STREAM = 1
"""Separates the random numbers of this stage from those of the other stages and of the benchmark."""


class Teacher(nn.Module):
    """The vision encoder with the heads that it is trained with."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.dense = nn.Linear(width, sum(DENSE.values()))
        self.gist = nn.Linear(width, sum(GLOBAL.values()))


def train_vision(
    tower: nn.Module, patch: int, width: int, folder: Path, plan: Plan, *, batch: int, seed: int, run: str
) -> None:
    """Train the vision encoder in place; see `loop.train` for the files."""
    teacher = Teacher(tower, width).to(best_device())
    held_out = make_batch(SEEDS["held_out"], 0, 64, patch)

    def make(step: int) -> Batch:
        return make_batch(SEEDS["train"] + 10 * seed, step, batch, patch)

    def compute(step: int, scenes: Batch) -> tuple[Tensor, Figures]:
        torch.manual_seed(1_000_003 * seed + step)
        return losses(teacher, *scenes)

    def validate() -> Figures:
        with torch.no_grad():
            return losses(teacher, *held_out)[1]

    train("vision", teacher, plan, make, compute, folder, validate=validate, run=f"{run}, {batch} scenes")


def losses(teacher: Teacher, pixels: Tensor, dense: Tensor, gist: Tensor) -> tuple[Tensor, Figures]:
    """Return the sum of all cross-entropies, and the accuracy of each target (boxes within one bin)."""
    device = teacher.dense.weight.device
    pixels, dense, gist = pixels.to(device), dense.to(device), gist.to(device)
    with autocast(device.type):
        features = teacher.tower(pixels).last_hidden_state
    features = features.float()
    few = torch.rand(features.shape[:2]).to(device).argsort(1)[:, : features.shape[1] // 10]
    pooled = features.gather(1, few[..., None].expand(-1, -1, features.shape[2])).mean(1)
    figures: Figures = {}
    total = features.new_zeros(())
    on = dense[..., 1] < len(SHAPES)
    for head, kinds, targets in ((teacher.dense(features), DENSE, dense), (teacher.gist(pooled), GLOBAL, gist)):
        for i, (logits, key) in enumerate(zip(head.split(list(kinds.values()), -1), kinds, strict=True)):
            target = targets[..., i]
            weight = 1.0 if kinds is DENSE else 0.2
            total = total + weight * F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=NOTHING)
            near = (logits.argmax(-1) - target).abs() <= (1 if key in ("left", "top", "right", "bottom") else 0)
            counted = (target != NOTHING) & on if kinds is DENSE else target != NOTHING
            if counted.any():
                figures[key] = near[counted].float().mean().item()
    return total, figures


def make_batch(seed: int, step: int, count: int, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels (count, 3, 128, 128), dense labels (count, patches, 9) and global labels (count, 12)."""
    rng = np.random.default_rng([seed, step, 0, 0, STREAM])
    scenes = [draw(rng, CLUTTERED if rng.random() < 0.2 else SEEN) for _ in range(count)]
    dense = np.stack([dense_labels(scene, patch) for scene in scenes])
    gist = np.array([gist_labels(scene) for scene in scenes])
    return to_pixels(scenes), torch.from_numpy(dense), torch.from_numpy(gist)


def to_pixels(scenes: list[Scene]) -> Tensor:
    """Return pixels as the image processor does: (count, 3, 128, 128), with mean 0.5 and deviation 0.25 removed."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - 0.5) / 0.25


def dense_labels(scene: Scene, patch: int) -> NDArray[np.int64]:
    """Return the labels of the object that covers most of each patch, (patches, 9); colour and shape may be "none"."""
    across = SIDE // patch
    labels = np.full((across, across, len(DENSE)), NOTHING)
    labels[..., 0], labels[..., 1] = len(COLOURS), len(SHAPES)
    covered = np.full((across, across), 8)
    edges = patch * np.arange(across)
    for item in scene.items:
        left, top, right, bottom = item.box
        wide = (np.minimum(right, edges + patch) - np.maximum(left, edges)).clip(0)
        high = (np.minimum(bottom, edges + patch) - np.maximum(top, edges)).clip(0)
        area = high[:, None] * wide[None]
        x, y = (int(value) // patch for value in item.centre)
        own = area > covered
        covered[own] = area[own]
        labels[own] = [
            list(COLOURS).index(item.colour),
            SHAPES.index(item.shape),
            SIZES.index(item.size),
            NOTHING if item.digit is None else item.digit,
            *(value // BIN for value in (left, top, right - 1, bottom - 1)),
            0,
        ]
        if own[y, x]:
            labels[y, x, -1] = 1
    return labels.reshape(across * across, -1)


def gist_labels(scene: Scene) -> list[int]:
    """Return the background and the numbers of objects of each colour and each shape."""
    counts = [sum(item.colour == colour for item in scene.items) for colour in COLOURS]
    counts += [sum(item.shape == shape for item in scene.items) for shape in SHAPES]
    return [BACKGROUNDS.index(scene.background), *(min(count, MOST) for count in counts)]
