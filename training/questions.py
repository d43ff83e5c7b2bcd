"""The training data of stages 3 and 4: images, and questions about them in rows of tokens.

The split, the seed, the step and the number of an image within the step determine everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from training import text
from training.build import EOS, PAD, to_pixels
from training.labels import shown
from training.loop import Batch
from training.world.questions import BINS, LOCATIONS
from training.world.scenes import CLUTTERED, SEEN, SIDE, SIZES, Scene, World, draw
from training.world.tasks import TASKS

SEEDS = {"train": 5, "held_out": 6}
STREAM = 13
"""Separates the random numbers of these stages from those of the other stages and of the benchmark."""
WORD_WEIGHT = 1.5
END_WEIGHT = 0.03
CAPTION_WEIGHT = 0.5
CAPTION, POINT = len(TASKS), len(TASKS) + 1
"""The task numbers of captions, and of questions for the colour at a place."""
SIZE_TOKENS = {text.INDEX[size] for size in SIZES}
Said = tuple[list[int], int, list[float], int]
"""Token ids, index of the first token of the answer, loss weight of each token of the answer, number of the task."""
ROW = 32
"""Number of tokens in a row of questions."""
CURRICULUM = (range(2, 4), range(3, 6), range(5, 9), range(8, 14), range(12, 21), SEEN.counts)
"""Numbers of things in a scene, by step of the curriculum; the last step also has clutter, as the benchmark does."""
CLUTTER = 0.25
"""Share of cluttered scenes in the last step of the curriculum."""


@dataclass(frozen=True)
class Asked:
    """The questions about each image.

    Attributes:
        shares: Number of questions by task; in cluttered scenes `cluttered` replaces `locate`.
        captions: Number of things that are described as well.
        points: Number of questions for the colour at a place. Every patch may matter for them, as in the descriptions
            of regions that large models are trained on.
        coordinates: Loss weights of left, top, right and bottom of a box.
    """

    shares: Mapping[str, int]
    captions: int = 0
    points: int = 0
    coordinates: tuple[float, float, float, float] = (0.7, 0.5, 0.2, 0.2)


def make_batch(images: list[tuple[str, int, int, int]], level: int, asked: Asked, patch: int) -> Batch:
    """Return pixels, token ids, targets, loss weights, question numbers and task numbers.

    All but the pixels have shape (images, R, ROW). A row contains as many questions as fit, numbered 1, 2, ...; 0 is
    padding. Captions and questions for the colour at a place have the task numbers `CAPTION` and `POINT`.

    Args:
        images: Split, seed, step and number within the step of each image.
        level: Step of the curriculum, an index into `CURRICULUM`; -1 is the last.
        asked: The questions about each image.
        patch: Width of a patch in pixels.
    """
    full = level % len(CURRICULUM) == len(CURRICULUM) - 1
    scenes, rows = [], []
    for split, *numbers_of_image in images:
        rng = np.random.default_rng([SEEDS[split], *numbers_of_image, STREAM])
        cluttered = full and rng.random() < CLUTTER
        world = CLUTTERED if cluttered else World(counts=CURRICULUM[level])
        scene = draw(rng, world)
        scenes.append(scene)
        rows.append(ask(rng, scene, cluttered, asked) + caption(rng, scene, asked) + point(rng, scene, asked, patch))
    places = [arrange([len(tokens) - 1 for tokens, _, _, _ in row]) for row in rows]
    count = 1 + max(j for row in places for j, _ in row)
    ids = np.full((len(images), count, ROW), PAD)
    targets, weights = ids.copy(), np.zeros(ids.shape, np.float32)
    segments, numbers = np.zeros_like(ids), np.zeros_like(ids)
    for i, row in enumerate(rows):
        for (tokens, answer, weight, task), (j, start) in zip(row, places[i], strict=True):
            end = start + len(tokens) - 1
            ids[i, j, start:end] = tokens[:-1]
            targets[i, j, start:end] = tokens[1:]
            weights[i, j, start + answer - 1 : end] = weight
            segments[i, j, start:end] = segments[i, j].max() + 1
            numbers[i, j, start:end] = task
    return to_pixels(scenes), *(torch.from_numpy(part) for part in (ids, targets, weights, segments, numbers))


def arrange(lengths: list[int]) -> list[tuple[int, int]]:
    """Return the row and the start in it of each question; the longest come first, each in the first row it fits.

    Raises:
        ValueError: If a question is longer than a row.
    """
    if max(lengths) > ROW:
        raise ValueError(f"a question of {max(lengths)} tokens does not fit into a row of {ROW}; raise questions.ROW")
    full: list[int] = []
    places = [(0, 0)] * len(lengths)
    for which in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((j for j, used in enumerate(full) if used + lengths[which] <= ROW), len(full))
        if row == len(full):
            full.append(0)
        places[which] = row, full[row]
        full[row] += lengths[which]
    return places


def ask(rng: np.random.Generator, scene: Scene, cluttered: bool, asked: Asked) -> list[Said]:
    """Return the questions about a scene, task by task."""
    result = []
    for name, share in asked.shares.items():
        task = "cluttered" if cluttered and name == "locate" else name
        for _ in range(share):
            question = TASKS[task].ask(scene, rng)
            if question is None:
                continue
            prompt, answer = text.encode(f"{question.text} assistant:"), text.encode(question.answer)
            weight = list(asked.coordinates) if question.box else [WORD_WEIGHT]
            result.append((prompt + answer + [EOS], len(prompt), [*weight, END_WEIGHT], list(TASKS).index(task)))
    return result


def caption(rng: np.random.Generator, scene: Scene, asked: Asked) -> list[Said]:
    """Return descriptions of some things, weighted from the first word that the image determines."""
    result = []
    for i in rng.permutation(len(scene.items))[: asked.captions]:
        tokens = [token for token, _ in text.describe(rng, scene.items[i])]
        begin = next(at for at, token in enumerate(tokens) if token in SIZE_TOKENS)
        box = next(at for at, token in enumerate(tokens) if token in text.PLACES)
        weights = [CAPTION_WEIGHT] * (box - begin) + [*asked.coordinates] + [END_WEIGHT] * (len(tokens) - box - 4)
        result.append((tokens, begin, weights, CAPTION))
    return result


def point(rng: np.random.Generator, scene: Scene, asked: Asked, patch: int) -> list[Said]:
    """Return questions for the colour of the thing at a place, or for the background where there is none."""
    result = []
    across = SIDE // patch
    owner = shown(scene, patch)
    for cell in rng.permutation(across**2)[: asked.points]:
        x, y = (int(place * patch + rng.integers(patch)) * BINS // SIDE for place in (cell % across, cell // across))
        colour = scene.items[owner[cell]].colour if owner[cell] >= 0 else scene.background
        prompt = text.encode(f"what colour is at {LOCATIONS[x]} {LOCATIONS[y]} ? assistant:")
        result.append((prompt + text.encode(colour) + [EOS], len(prompt), [WORD_WEIGHT, END_WEIGHT], POINT))
    return result
