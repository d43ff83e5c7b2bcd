"""Stages 3 and 4: the decoder learns to look, first with its early layers frozen, then as a whole.

The vision tower stays frozen. In stage 3 the word embeddings and the first layers stay frozen, too, as they are in the
first stage of LLaVA's recipe, so that the early layers remain those of a language model; stage 4 tunes all layers at a
lower rate. Every image is asked many questions at once (see `packed`).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from feathervlm.embedded.grading import LOCATIONS
from feathervlm.embedded.scenes import CLUTTERED, SEEN, SIZES, Scene, World, draw
from feathervlm.embedded.tasks import LOCALIZATION, TASKS
from training import packed, text
from training.build import BOS, EOS, PAD
from training.loop import Averages, Batch, Figures, train
from training.machine import autocast
from training.recipe import LOOKING, SHARES, Recipe
from training.vision import to_pixels

SEEDS = {"train": 5, "held_out": 6}
STREAM = 3
"""Sets the random numbers of these stages apart from those of the others and of the benchmark."""
COORDINATE_WEIGHTS = (0.7, 0.5, 0.2, 0.2)
"""Left and top are the hard part, finding the object; right and bottom follow from its size."""
WORD_WEIGHT = 1.5
END_WEIGHT = 0.03
CAPTION_WEIGHT = 0.5
CAPTION = len(TASKS)
SIZE_TOKENS = {text.INDEX[size] for size in SIZES}
PLACE_TOKENS = {text.INDEX[place] for place in LOCATIONS}
ROW = 32
"""Tokens of a row of questions."""
MOST_OBJECTS = (2, 3, 4, 5, 6, 8)
"""That a scene may hold, as the curriculum goes on; with the last come clutter and scenes as they are asked about."""


def train_alignment(
    model: LlavaForConditionalGeneration,
    name: str,
    folder: Path,
    recipe: Recipe,
    seed: int,
    *,
    process: int = 0,
    processes: int = 1,
    stop_at: int | None = None,
) -> None:
    """Train projector and decoder in place; see `loop.train` for the files.

    Args:
        model: with a trained tower and a trained decoder.
        name: of the stage; "align" begins with few objects, and its first layers and the word embeddings do not change.
        folder: for checkpoints and the log.
        recipe: how to optimize.
        seed: of the run.
        process: the number of this process.
        processes: how many work together, joined by torch.distributed.
        stop_at: end before this step, to be resumed later.
    """
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    aligning = name == "align"
    plan = recipe.align if aligning else recipe.tune
    if aligning:
        model.model.language_model.embed_tokens.requires_grad_(False)
        model.model.language_model.layers[: recipe.frozen].requires_grad_(False)

    share = recipe.images // processes

    def make(step: int) -> Batch:
        most = MOST_OBJECTS[sum(step / plan.steps >= mark for mark in recipe.curriculum) if aligning else -1]
        mine = range(process * share, (process + 1) * share)
        shares = LOOKING if aligning and step < recipe.looking else recipe.shares
        return make_batch([("train", seed, step, i) for i in mine], most, shares, recipe.captions)

    def compute(step: int, questions: Batch) -> tuple[Tensor, Figures]:
        return losses(model, questions)

    held_out = [
        make_batch([("held_out", 0, batch, i) for i in range(8)], MOST_OBJECTS[-1], SHARES) for batch in range(8)
    ]

    def validate() -> Figures:
        averages = Averages()
        with torch.no_grad():
            for batch in held_out:
                averages.add(losses(model, batch)[1])
        return averages.take()

    def reduce(parameters: list[Tensor]) -> None:
        flat = torch.cat([weight.grad.flatten() for weight in parameters])
        torch.distributed.all_reduce(flat)
        flat /= processes
        for weight, grad in zip(parameters, flat.split([weight.numel() for weight in parameters]), strict=True):
            weight.grad.copy_(grad.view_as(weight))

    train(
        name,
        model,
        plan,
        make,
        compute,
        folder,
        validate=validate,
        every=250,
        reduce=reduce if processes > 1 else None,
        main=process == 0,
        stop_at=stop_at,
        run=f"{recipe.run(seed)}, {recipe.images} images",
    )


def fit_projector(model: LlavaForConditionalGeneration) -> None:
    """Scale the fresh projector so that it turns the tower's features into vectors as long as word embeddings."""
    pixels = to_pixels([draw(np.random.default_rng([SEEDS["train"], i])) for i in range(16)]).to(model.device)
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        raw = see(model, pixels)
        projector.linear_1.weight /= raw.std()
        output = projector(raw)
        factor = model.model.language_model.embed_tokens.weight.std() / output.std()
        projector.linear_2.weight *= factor
        projector.linear_2.bias *= factor


def see(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The tower's features of the layer that the model reads: (images, patches, width)."""
    with torch.no_grad(), autocast(pixels.device.type):
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer].float()


def make_batch(
    images: list[tuple[str, int, int, int]], most: int, shares: Mapping[str, int], captions: int = 0
) -> Batch:
    """Pixels, and questions in rows: token ids, targets, loss weights, questions and tasks, all (images, R, ROW).

    A row holds as many questions as it has room for, of the numbers 1, 2, ...; 0 is padding. A caption takes the place
    of a question, with `CAPTION` as its task.

    Args:
        images: for each its split, the seed, the step and its number within the step.
        most: objects in a scene, one of `MOST_OBJECTS`.
        shares: questions of each task per image.
        captions: objects described per image.
    """
    full = most == MOST_OBJECTS[-1]
    scenes, rows = [], []
    for split, *numbers_of_image in images:
        rng = np.random.default_rng([SEEDS[split], *numbers_of_image, STREAM])
        cluttered = full and rng.random() < 0.2
        world = CLUTTERED if cluttered else SEEN if full else World(counts=range(min(3, most), most + 1))
        scene = draw(rng, world)
        scenes.append(scene)
        rows.append(ask(rng, scene, cluttered, shares) + caption(rng, scene, captions))
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
        raise ValueError(f"a question of {max(lengths)} tokens does not fit into a row of {ROW}; raise align.ROW")
    full: list[int] = []
    places = [(0, 0)] * len(lengths)
    for which in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((j for j, used in enumerate(full) if used + lengths[which] <= ROW), len(full))
        if row == len(full):
            full.append(0)
        places[which] = row, full[row]
        full[row] += lengths[which]
    return places


def ask(
    rng: np.random.Generator, scene: Scene, cluttered: bool, shares: Mapping[str, int]
) -> list[tuple[list[int], int, list[float], int]]:
    """Questions about a scene: (token ids, where the answer begins, the answer's loss weights, task number)."""
    found = []
    for name, share in shares.items():
        task = "cluttered" if cluttered and name == "locate" else name
        for _ in range(share):
            question = TASKS[task].ask(scene, rng)
            if question is None:
                continue
            prompt, answer = text.encode(f"{question.text} assistant:"), text.encode(question.answer)
            weight = list(COORDINATE_WEIGHTS) if question.box else [WORD_WEIGHT]
            found.append((prompt + answer + [EOS], len(prompt), [*weight, END_WEIGHT], list(TASKS).index(task)))
    return found


def caption(rng: np.random.Generator, scene: Scene, count: int) -> list[tuple[list[int], int, list[float], int]]:
    """Some objects in words, as text describes them; which object comes next cannot be known, the rest can be seen."""
    found = []
    for i in rng.permutation(len(scene.items))[:count]:
        tokens = [token for token, _ in text.describe(rng, scene.items[i])]
        begin = next(at for at, token in enumerate(tokens) if token in SIZE_TOKENS)
        box = next(at for at, token in enumerate(tokens) if token in PLACE_TOKENS)
        weights = [CAPTION_WEIGHT] * (box - begin) + [*COORDINATE_WEIGHTS] + [END_WEIGHT] * (len(tokens) - box - 4)
        found.append((tokens, begin, weights, CAPTION))
    return found


def losses(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Figures]:
    """The weighted cross-entropy; per task the share of right answers (boxes: left and top within one bin)."""
    pixels, ids, targets, weights, segments, numbers = (part.to(model.device) for part in batch)
    inner = model.model
    embed = inner.language_model.embed_tokens
    start = embed.weight[BOS].expand(len(pixels), 1, -1)
    prefix = torch.cat([start, inner.multi_modal_projector(see(model, pixels))], 1)
    states = packed.run(inner.language_model, prefix, embed(ids), segments)
    asked = weights > 0
    logits, target, weight = model.lm_head(states[asked]), targets[asked], weights[asked]
    task = numbers[asked]
    each = F.cross_entropy(logits, target, reduction="none")
    figures: Figures = {}
    guess = logits.argmax(-1)
    with torch.no_grad():
        for i, name in enumerate(TASKS):
            mine = (task == i) & (weight > END_WEIGHT)
            if not mine.any():
                continue
            if name in LOCALIZATION:
                near = ((guess - target)[mine].view(-1, 4).abs() <= 1)[:, :2]
                figures[name] = near.all(1).float().mean().item()
            else:
                figures[name] = (guess == target)[mine].float().mean().item()
            figures[f"{name}_loss"] = each[mine].mean().item()
    return (each * weight).sum() / weight.sum(), figures
