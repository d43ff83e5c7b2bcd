"""Stage 2: the decoder is trained as a language model on text alone (see `text`).

Two linear heads on early layers have losses of their own (see `recipe.Early`).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from training import packed, text
from training.loop import Batch, Figures, train
from training.machine import best_device
from training.recipe import Early, Recipe

LENGTH = 288
SEEDS = {"train": 3, "held_out": 4}
STREAM = 2
"""Separates the random numbers of this stage from those of the other stages and of the benchmark."""


class Language(nn.Module):
    """The parts of the model that process text, and the heads of the early layers."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.model.language_model
        self.head = model.lm_head
        self.bag, self.answer = (nn.Linear(self.head.in_features, self.head.out_features) for _ in range(2))


def train_language(
    model: LlavaForConditionalGeneration, folder: Path, recipe: Recipe, seed: int, *, stop_at: int | None = None
) -> None:
    """Train the decoder in place; see `loop.train` for the files."""
    plan, count = recipe.language, recipe.language_batch
    torch.manual_seed(seed)
    language = Language(model).to(best_device())

    def make(step: int) -> Batch:
        done = (step - recipe.recall_first) / (plan.steps - recipe.recall_first)
        hardest = 1 + sum(done > mark for mark in (0.06, 0.12, 0.2, 0.35, 0.5))
        mix = replace(recipe.text, recall=1.0) if step < recipe.recall_first else recipe.text
        return make_batch(SEEDS["train"] + 10 * seed, step, count, hardest, mix)

    def compute(step: int, texts: Batch) -> tuple[Tensor, Figures]:
        return losses(language, texts, recipe.early)

    held_out = make_batch(SEEDS["held_out"], 0, 24, 5, text.Mix())

    def validate() -> Figures:
        with torch.no_grad():
            return losses(language, held_out, recipe.early)[1]

    run = f"{recipe.run(seed)}, {count} sequences"
    train("language", language, plan, make, compute, folder, validate=validate, run=run, stop_at=stop_at)


def make_batch(seed: int, step: int, count: int, hardest: int, mix: text.Mix) -> tuple[Tensor, Tensor]:
    """Return token ids and loss weights, both of shape (count, LENGTH + 1)."""
    rng = np.random.default_rng([seed, step, 0, 0, STREAM])
    pairs = np.array([text.sequence(rng, LENGTH, hardest, mix) for _ in range(count)])
    return torch.from_numpy(pairs[..., 0]).long(), torch.from_numpy(pairs[..., 1]).float()


def losses(language: Language, data: Batch, early: Early) -> tuple[Tensor, Figures]:
    """Return the weighted loss, and the shares of words, answers and first coordinates that are right."""
    tokens, weights = (part.to(language.head.weight.device) for part in data)
    embedded = language.decoder.embed_tokens(tokens[:, :-1])
    states, tapped = packed.run(language.decoder, embedded, taps=(early.bag_layer, early.answer_layer))
    logits = language.head(states)
    target, weight = tokens[:, 1:], weights[:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
    right = (logits.argmax(-1) == target).float()
    answer = weight == text.ANSWER
    place = answer & (target >= text.PLACES.start) & (target < text.PLACES.stop)
    opening = place & (tokens[:, :-1] == text.INDEX["assistant:"])
    bursty = (weight[:, 4:] == text.WORD).all(1, keepdim=True)
    figures = {
        "words": each[(weight == text.WORD) & ~bursty],
        "bursts": each[bursty.expand_as(each)],
        "places": right[place],
        "first_places": right[opening],
        "answers": right[answer & ~place],
    }
    means = {key: values.mean().item() for key, values in figures.items() if len(values)}
    bag = bag_loss(language.bag(packed.unit(tapped[early.bag_layer])), tokens[:, :-1], early.bag_words)
    total = (each * weight).sum() / weight.sum() + early.bag_weight * bag
    means["bag"] = bag.item()
    if answer.any():
        logits = language.answer(packed.unit(tapped[early.answer_layer][answer]))
        total = total + early.answer_weight * F.cross_entropy(logits, target[answer])
        means["early_places"] = right_share(logits, target[answer], place[answer])
    return total, {key: value for key, value in means.items() if value == value}


def right_share(logits: Tensor, target: Tensor, counted: Tensor) -> float:
    """Return the share of right tokens among those that are counted; not a number if there are none."""
    return (logits.argmax(-1) == target)[counted].float().mean().item()


def bag_loss(logits: Tensor, tokens: Tensor, words: int) -> Tensor:
    """Return the mean cross-entropy of naming each of the last words, the present one included, in any order."""
    chances = logits.log_softmax(-1)
    length = tokens.shape[1]
    near = [-chances[:, back:].gather(-1, tokens[:, : length - back, None]).mean() for back in range(words)]
    return torch.stack(near).mean()
