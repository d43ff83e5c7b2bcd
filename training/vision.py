"""Stage 1: the vision encoder is trained on the labels of generated scenes.

There are three kinds of targets. Dense: each patch predicts the labels of `labels.DENSE`. Content: each patch predicts
its own pixels at a third of the resolution, whatever it shows, so that patches without a thing carry information as
well. Global: the mean of a random tenth of the patches predicts the background and the number of things of each colour
and shape, so that every token also has information on the whole picture, as in image-text pretraining (cf. FLIP, arXiv
2212.00794). The heads are not used afterwards.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.build import to_pixels
from training.labels import DENSE, EDGES, FAR, GLOBAL, NOTHING, dense_labels, global_labels, patch_weights
from training.loop import Batch, Figures, train
from training.machine import autocast, best_device
from training.recipe import Recipe
from training.world.scenes import CLUTTERED, SEEN, SHAPES, SIZES, draw

DETAIL = 3
"""Side in pixels of the squares whose means a patch predicts."""
CONTENT_WEIGHT, GLOBAL_WEIGHT = 2.0, 0.05
DENSE_WEIGHTS = {"shape": 2.0, **dict.fromkeys((*EDGES, "size", "middle"), 0.5)}
"""Weights of the losses per patch, if not 1. Shapes are learned last."""
CLUTTER = 0.25
"""Share of cluttered scenes."""
SEEDS = {"train": 1, "held_out": 2}
STREAM = 11
"""Separates the random numbers of this stage from those of the other stages and of the benchmark."""


class Teacher(nn.Module):
    """The vision encoder with the heads that it is trained with."""

    def __init__(self, tower: nn.Module, patch: int, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.dense = nn.Linear(width, sum(DENSE.values()))
        self.gist = nn.Linear(width, sum(GLOBAL.values()))
        self.content = nn.Linear(width, 3 * (patch // DETAIL) ** 2)


def train_vision(
    tower: nn.Module, folder: Path, recipe: Recipe, seed: int, *, held_out: int = 48, stop_at: int | None = None
) -> None:
    """Train the vision encoder in place; see `loop.train` for the files."""
    patch, batch = recipe.size.patch, recipe.vision_batch
    torch.manual_seed(seed)
    teacher = Teacher(tower, patch, recipe.size.tower_width).to(best_device())
    known = make_batch(SEEDS["held_out"], 0, held_out, patch)

    def make(step: int) -> Batch:
        return make_batch(SEEDS["train"] + 10 * seed, step, batch, patch)

    def compute(step: int, scenes: Batch) -> tuple[Tensor, Figures]:
        torch.manual_seed(1_000_003 * seed + step)
        return losses(teacher, *scenes)

    def validate() -> Figures:
        torch.manual_seed(0)
        with torch.no_grad():
            return losses(teacher, *known)[1]

    run = f"{recipe.run(seed)}, {batch} scenes"
    train("vision", teacher, recipe.vision, make, compute, folder, validate=validate, run=run, stop_at=stop_at)


def losses(teacher: Teacher, pixels: Tensor, dense: Tensor, weights: Tensor, gist: Tensor) -> tuple[Tensor, Figures]:
    """Return the weighted sum of all losses, and the accuracy of each target.

    The accuracies per patch are those of patches that show a thing; edges are counted where they are near, and may be
    off by one class. `small_shape` is the accuracy on small things, `none` that of the shape where there is none.
    """
    device = teacher.dense.weight.device
    pixels, dense, weights, gist = (part.to(device) for part in (pixels, dense, weights, gist))
    with autocast(device.type):
        features = teacher.tower(pixels).last_hidden_state
    features = features.float()
    few = torch.rand(features.shape[:2]).to(device).argsort(1)[:, : features.shape[1] // 10]
    pooled = features.gather(1, few[..., None].expand(-1, -1, features.shape[2])).mean(1)
    wanted = content(pixels, features.shape[1])
    unexplained = F.mse_loss(teacher.content(features), wanted) / wanted.var()
    total = CONTENT_WEIGHT * unexplained
    figures: Figures = {"content": 1 - unexplained.item()}
    on, small = dense[..., 1] < len(SHAPES), dense[..., 2] == SIZES.index("small")
    for key, logits, target in by_name(teacher.dense(features), dense, DENSE):
        each = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=NOTHING, reduction="none")
        weight = weights.flatten() * (target.flatten() != NOTHING)
        total = total + DENSE_WEIGHTS.get(key, 1.0) * (each * weight).sum() / weight.sum().clamp(min=1)
        guess = logits.argmax(-1)
        counted = (target != NOTHING) & on
        right = guess == target
        if key in EDGES:
            counted &= target != FAR
            right = ((guess - target).abs() <= 1) & (guess != FAR)
        if counted.any():
            figures[key] = right[counted].float().mean().item()
        if key == "shape":
            parts = {"none": ~on, "small_shape": on & small}
            figures |= {name: right[part].float().mean().item() for name, part in parts.items() if part.any()}
    for key, logits, target in by_name(teacher.gist(pooled), gist, GLOBAL):
        total = total + GLOBAL_WEIGHT * F.cross_entropy(logits, target)
        if key == "background":
            figures[key] = (logits.argmax(-1) == target).float().mean().item()
    return total, figures


def by_name(outputs: Tensor, labels: Tensor, kinds: dict[str, int]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the name, the logits and the labels of each kind."""
    yield from zip(kinds, outputs.split(list(kinds.values()), -1), labels.unbind(-1), strict=True)


def content(pixels: Tensor, patches: int) -> Tensor:
    """Return the means of squares of `DETAIL` pixels in each patch, of shape (images, patches, squares * 3)."""
    across = round(patches**0.5)
    small = F.avg_pool2d(pixels, DETAIL)
    cells = small.unflatten(2, (across, -1)).unflatten(4, (across, -1))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def make_batch(seed: int, step: int, count: int, patch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixels, labels and weights of patches, and labels of scenes.

    Their shapes are (count, 3, SIDE, SIDE), (count, patches, 9), (count, patches) and (count, 21).
    """
    rng = np.random.default_rng([seed, step, 0, 0, STREAM])
    scenes = [draw(rng, CLUTTERED if rng.random() < CLUTTER else SEEN) for _ in range(count)]
    dense = np.stack([dense_labels(scene, patch) for scene in scenes])
    weights = np.stack([patch_weights(scene, patch) for scene in scenes])
    gist = np.array([global_labels(scene) for scene in scenes])
    return to_pixels(scenes), *(torch.from_numpy(part) for part in (dense, weights, gist))
