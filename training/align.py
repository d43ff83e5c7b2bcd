"""Stages 3 and 4: the decoder is trained on images, first with its early layers frozen, then as a whole.

The vision encoder stays frozen. In stage 3 the word embeddings and the first layers stay frozen as well, as in the
first stage of LLaVA's recipe, so that the early layers remain those of a language model. Stage 4 tunes all layers at a
lower rate. Many questions about an image are answered in one forward pass (see `packed`).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from feathervlm.embedded.scenes import draw
from feathervlm.embedded.tasks import LOCALIZATION, TASKS
from training import packed
from training.build import BOS
from training.loop import Averages, Batch, Figures, train
from training.machine import autocast
from training.questions import END_WEIGHT, MOST_OBJECTS, SEEDS, Asked, make_batch
from training.recipe import SHARES, Recipe
from training.vision import to_pixels


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
        model: Model with a trained vision encoder and a trained decoder.
        name: Name of the stage. "align" starts with few objects and leaves its first layers and the word embeddings
            unchanged.
        folder: Directory of checkpoints and log.
        recipe: Recipe of the run.
        seed: Seed of the run.
        process: Number of this process.
        processes: Number of processes, connected by torch.distributed.
        stop_at: Step to stop before, so that the stage can be resumed.
    """
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    aligning = name == "align"
    plan = recipe.align if aligning else recipe.tune
    if aligning:
        model.model.language_model.embed_tokens.requires_grad_(False)
        model.model.language_model.layers[: recipe.frozen].requires_grad_(False)

    share = recipe.images // processes
    looking = recipe.looking if aligning else None

    def make(step: int) -> Batch:
        most = MOST_OBJECTS[sum(step / plan.steps >= mark for mark in recipe.curriculum) if aligning else -1]
        own = range(process * share, (process + 1) * share)
        asked = looking.asked if looking and step < looking.steps else recipe.asked
        return make_batch([("train", seed, step, i) for i in own], most, asked)

    def compute(step: int, questions: Batch) -> tuple[Tensor, Figures]:
        if looking:
            # The optimizers have these layers from the start and skip parameters without a gradient.
            layers = model.model.language_model.layers[recipe.frozen : looking.frozen]
            layers.requires_grad_(step >= looking.steps)
        return losses(model, questions)

    held_out = [
        make_batch([("held_out", 0, batch, i) for i in range(8)], MOST_OBJECTS[-1], Asked(SHARES)) for batch in range(8)
    ]

    def validate() -> Figures:
        averages = Averages()
        with torch.no_grad():
            for batch in held_out:
                averages.add(losses(model, batch)[1])
        return averages.take()

    def reduce(parameters: list[Tensor]) -> None:
        moving = [weight for weight in parameters if weight.grad is not None]
        flat = torch.cat([weight.grad.flatten() for weight in moving])
        torch.distributed.all_reduce(flat)
        flat /= processes
        for weight, grad in zip(moving, flat.split([weight.numel() for weight in moving]), strict=True):
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
    """Scale the untrained projector so that its output has the standard deviation of word embeddings."""
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
    """Return the vision encoder's features of the layer that the model uses, of shape (images, patches, width)."""
    with torch.no_grad(), autocast(pixels.device.type):
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer].float()


def losses(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Figures]:
    """Return the weighted cross-entropy and the share of right answers by task (boxes: left and top within one bin)."""
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
            own = (task == i) & (weight > END_WEIGHT)
            if not own.any():
                continue
            if name in LOCALIZATION:
                near = ((guess - target)[own].view(-1, 4).abs() <= 1)[:, :2]
                figures[name] = near.all(1).float().mean().item()
            else:
                figures[name] = (guess == target)[own].float().mean().item()
            figures[f"{name}_loss"] = each[own].mean().item()
    return (each * weight).sum() / weight.sum(), figures
