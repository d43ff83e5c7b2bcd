"""Stages 3 and 5: the decoder is trained on images, first with its early layers frozen, then as a whole.

The vision encoder stays frozen. In stage 3 the word embeddings and the first layers stay frozen as well, as in the
first stage of LLaVA's recipe, so that the early layers remain those of a language model. In its first part most
questions ask for one thing, and the early head of the text stage answers, too, so that the lookup stays early. Stage 5
tunes all layers at a lower rate. Many questions about an image are answered in one forward pass (see `packed`).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from training import packed
from training.build import BOS
from training.loop import Averages, Batch, Figures, train
from training.machine import autocast
from training.questions import END_WEIGHT, POINT, Asked, make_batch
from training.recipe import ALL, LOOKING, Recipe
from training.text import PLACES
from training.world.tasks import LOCALIZATION, TASKS

HELD_OUT, IMAGES = 8, 8
"""Number of held-out batches on which progress is measured, and of the images in each."""


class Learner(nn.Module):
    """The model and the head of its early layers, which is not part of the exported model."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.answer = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)


def train_alignment(
    learner: Learner,
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
        learner: Model with a trained vision encoder and a trained decoder, and its early head.
        name: Name of the stage. "align" starts with few things and leaves its first layers and the word embeddings
            unchanged.
        folder: Directory of checkpoints and log.
        recipe: Recipe of the run.
        seed: Seed of the run.
        process: Number of this process.
        processes: Number of processes, connected by torch.distributed.
        stop_at: Step to stop before, so that the stage can be resumed.
    """
    aligning = name == "align"
    plan = recipe.align if aligning else recipe.tune
    choose_trained(learner, recipe.frozen if aligning else 0)
    learner.answer.requires_grad_(aligning)
    patch = recipe.size.patch
    share = recipe.images // processes

    def before(share_of_steps: float, step: int) -> bool:
        return aligning and step < share_of_steps * plan.steps

    def make(step: int) -> Batch:
        level = sum(step / plan.steps >= mark for mark in recipe.curriculum) if aligning else -1
        own = range(process * share, (process + 1) * share)
        asked = LOOKING if before(recipe.looking, step) else ALL
        return make_batch([("train", seed, step, i) for i in own], level, asked, patch)

    def compute(step: int, questions: Batch) -> tuple[Tensor, Figures]:
        early = recipe.early.answer_layer if before(recipe.early.until, step) else None
        loss, figures, early_loss = losses(learner, questions, early)
        return loss if early_loss is None else loss + recipe.early.answer_weight * early_loss, figures

    known = held_out(HELD_OUT, patch)

    def validate() -> Figures:
        return measure(learner, known)

    def reduce(parameters: list[Tensor]) -> None:
        moving = [weight for weight in parameters if weight.grad is not None]
        flat = torch.cat([weight.grad.flatten() for weight in moving])
        torch.distributed.all_reduce(flat)
        flat /= processes
        for weight, grad in zip(moving, flat.split([weight.numel() for weight in moving]), strict=True):
            weight.grad.copy_(grad.view_as(weight))

    train(
        name,
        learner,
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


def choose_trained(learner: Learner, frozen: int) -> None:
    """Let the vision encoder and some first layers, with the word embeddings, stay as they are; train all else."""
    inner = learner.model.model
    learner.requires_grad_(True)
    inner.vision_tower.requires_grad_(False)
    if frozen:
        inner.language_model.embed_tokens.requires_grad_(False)
        inner.language_model.layers[:frozen].requires_grad_(False)


def held_out(batches: int, patch: int, asked: Asked = ALL) -> list[Batch]:
    """Return batches of images that training does not see."""
    return [
        make_batch([("held_out", 0, batch, i) for i in range(IMAGES)], -1, asked, patch) for batch in range(batches)
    ]


def measure(learner: Learner, batches: list[Batch], skip: tuple[int, ...] = ()) -> Figures:
    """Return the mean loss and metrics on some batches, with some layers left out."""
    averages = Averages()
    with torch.no_grad():
        for batch in batches:
            loss, figures, _ = losses(learner, batch, skip=skip)
            averages.add({"loss": loss.item(), **figures})
    return averages.take()


def see(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the vision encoder's features of the layer that the model uses, of shape (images, patches, width)."""
    with torch.no_grad(), autocast(pixels.device.type):
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer].float()


def losses(
    learner: Learner, batch: Batch, early: int | None = None, skip: tuple[int, ...] = ()
) -> tuple[Tensor, Figures, Tensor | None]:
    """Return the weighted cross-entropy, the share of right answers by task, and the loss of the early head.

    Boxes are right if the four guessed tokens, each after the right ones before it, have an IoU of 0.5 with the true
    box; `<task>_left` is the share of left edges within one bin.

    Args:
        learner: Model and early head.
        batch: What `questions.make_batch` returns.
        early: Number of layers below the early head; None leaves it out.
        skip: Layers that are left out.
    """
    model = learner.model
    pixels, ids, targets, weights, segments, numbers = (part.to(model.device) for part in batch)
    inner = model.model
    embed = inner.language_model.embed_tokens
    start = embed.weight[BOS].expand(len(pixels), 1, -1)
    prefix = torch.cat([start, inner.multi_modal_projector(see(model, pixels))], 1)
    taps = () if early is None else (early,)
    states, tapped = packed.run(inner.language_model, prefix, embed(ids), segments, taps=taps, skip=skip)
    asked = weights > 0
    logits, target, weight = model.lm_head(states[asked]), targets[asked], weights[asked]
    each = F.cross_entropy(logits, target, reduction="none")
    early_loss = None
    if early is not None:
        early_each = F.cross_entropy(learner.answer(packed.unit(tapped[early][asked])), target, reduction="none")
        early_loss = (early_each * weight).sum() / weight.sum()
    figures = by_task(logits.detach().argmax(-1), target, weight, numbers[asked])
    return (each * weight).sum() / weight.sum(), figures, early_loss


def by_task(guess: Tensor, target: Tensor, weight: Tensor, task: Tensor) -> Figures:
    """Return the share of right answers by task, for tokens with a weight."""
    figures: Figures = {}
    for number, name in enumerate((*TASKS, "caption", "point")):
        own = (task == number) & (weight > END_WEIGHT)
        if not own.any() or name == "caption":
            continue
        if name in LOCALIZATION:
            boxes, true = ((part[own] - PLACES.start).view(-1, 4) for part in (guess, target))
            figures[name] = (overlap(boxes, true) >= 0.5).float().mean().item()
            figures[f"{name}_left"] = ((boxes - true)[:, 0].abs() <= 1).float().mean().item()
        else:
            figures[name] = (guess == target)[own].float().mean().item()
    assert number == POINT
    return figures


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of boxes of bins, (count, 4), whose last bins belong to them; 0 for boxes of no size."""
    sides = (torch.minimum(boxes, others)[:, 2:] - torch.maximum(boxes, others)[:, :2] + 1).clamp(min=0)
    areas = [(part[:, 2:] - part[:, :2] + 1).clamp(min=0).prod(1) for part in (boxes, others)]
    shared = sides.prod(1)
    return shared / (areas[0] + areas[1] - shared).clamp(min=1)
