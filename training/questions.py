"""Images and what is asked about them in stages 3 and 4: drawn, put into words, and laid out in rows.

Everything follows from the split, the seed, the step and the number of an image within the step. Knows scenes, tasks
and words; knows nothing of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from feathervlm.embedded.questions import LOCATIONS
from feathervlm.embedded.scenes import CLUTTERED, SEEN, SIZES, Scene, World, draw
from feathervlm.embedded.tasks import TASKS
from training import text
from training.build import EOS, PAD
from training.loop import Batch
from training.vision import to_pixels

SEEDS = {"train": 5, "held_out": 6}
STREAM = 3
"""Sets the random numbers of these stages apart from those of the others and of the benchmark."""
WORD_WEIGHT = 1.5
END_WEIGHT = 0.03
CAPTION_WEIGHT = 0.5
CAPTION = len(TASKS)
"""The task number of captions."""
SIZE_TOKENS = {text.INDEX[size] for size in SIZES}
PLACE_TOKENS = {text.INDEX[place] for place in LOCATIONS}
Said = tuple[list[int], int, list[float], int]
"""Token ids, where the answer begins, the loss weight of each token of the answer, the number of the task."""
ROW = 32
"""Tokens of a row of questions."""
MOST_OBJECTS = (2, 3, 4, 5, 6, 8)
"""That a scene may hold, as the curriculum goes on; with the last come clutter and scenes as they are asked about."""


@dataclass(frozen=True)
class Asked:
    """What is asked about each image.

    Attributes:
        shares: questions of each task; in cluttered scenes `cluttered` takes the place of `locate`.
        captions: so many objects are described, too.
        coordinates: how much left, top, right and bottom of a box count in the loss. Left and top are the hard part,
            finding the object; right and bottom follow from its size.
    """

    shares: Mapping[str, int]
    captions: int = 0
    coordinates: tuple[float, float, float, float] = (0.7, 0.5, 0.2, 0.2)


def make_batch(images: list[tuple[str, int, int, int]], most: int, asked: Asked) -> Batch:
    """Pixels, and questions in rows: token ids, targets, loss weights, questions and tasks, all (images, R, ROW).

    A row holds as many questions as it has room for, of the numbers 1, 2, ...; 0 is padding. A caption takes the place
    of a question, with `CAPTION` as its task.

    Args:
        images: for each its split, the seed, the step and its number within the step.
        most: objects in a scene, one of `MOST_OBJECTS`.
        asked: about each image.
    """
    full = most == MOST_OBJECTS[-1]
    scenes, rows = [], []
    for split, *numbers_of_image in images:
        rng = np.random.default_rng([SEEDS[split], *numbers_of_image, STREAM])
        cluttered = full and rng.random() < 0.2
        world = CLUTTERED if cluttered else SEEN if full else World(counts=range(min(3, most), most + 1))
        scene = draw(rng, world)
        scenes.append(scene)
        rows.append(ask(rng, scene, cluttered, asked) + caption(rng, scene, asked))
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
    """For each question the row and the place in it where it begins: the longest first, each where it fits first.

    Raises:
        ValueError: a question is longer than a row.
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
    """Questions about a scene: what is said, task by task."""
    found = []
    for name, share in asked.shares.items():
        task = "cluttered" if cluttered and name == "locate" else name
        for _ in range(share):
            question = TASKS[task].ask(scene, rng)
            if question is None:
                continue
            prompt, answer = text.encode(f"{question.text} assistant:"), text.encode(question.answer)
            weight = list(asked.coordinates) if question.box else [WORD_WEIGHT]
            found.append((prompt + answer + [EOS], len(prompt), [*weight, END_WEIGHT], list(TASKS).index(task)))
    return found


def caption(rng: np.random.Generator, scene: Scene, asked: Asked) -> list[Said]:
    """Some objects in words, as text describes them; which object comes next cannot be known, the rest can be seen."""
    found = []
    for i in rng.permutation(len(scene.items))[: asked.captions]:
        tokens = [token for token, _ in text.describe(rng, scene.items[i])]
        begin = next(at for at, token in enumerate(tokens) if token in SIZE_TOKENS)
        box = next(at for at, token in enumerate(tokens) if token in PLACE_TOKENS)
        weights = [CAPTION_WEIGHT] * (box - begin) + [*asked.coordinates] + [END_WEIGHT] * (len(tokens) - box - 4)
        found.append((tokens, begin, weights, CAPTION))
    return found
