"""Fits the projector before stage 3, so that each visual token is near the words for the content of its patch.

Vision encoders are usually trained with text, and projectors on captions, so that visual tokens are near words from the
start. Here the words follow from the generated scene, and the projector is fitted to them by least squares, in seconds.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from feathervlm.embedded.questions import LOCATIONS
from feathervlm.embedded.scenes import CLUTTERED, COLOURS, SEEN, SHAPES, SIZES, Scene, draw
from training import text
from training.align import see
from training.vision import DENSE, dense_labels, to_pixels

STREAM = 7
"""Separates the random numbers of this step from those of the stages."""
SEED = 5
AT_ONCE = 16
"""Scenes per forward pass of the vision encoder."""
PATCHES = 2048
"""Patches per step of the fit."""
SHARE = 1.5 / 7**0.5
"""Scale of the sum of an object's seven words, about the length of one and a half word embeddings."""
ROLE = 31
"""Number of places by which each edge of a box is rolled further than the previous, since all share their words."""


def begin_with_words(
    model: LlavaForConditionalGeneration, seed: int, *, scenes: int = 192, steps: int = 600, rate: float = 4e-3
) -> None:
    """Fit the untrained projector in place; the vision encoder and the word embeddings must be trained."""
    drawn = []
    for i in range(scenes):
        world = CLUTTERED if i % 5 == 0 else SEEN
        drawn.append(draw(np.random.default_rng([SEED, seed, i, STREAM]), world))
    words = model.model.language_model.embed_tokens.weight.detach()
    patch = model.config.vision_config.patch_size
    pairs = [patch_words(scene, words.cpu(), patch) for scene in drawn]
    targets, on = torch.cat([sums for sums, _ in pairs]).to(words.device), torch.cat([on for _, on in pairs])
    parts = [drawn[i : i + AT_ONCE] for i in range(0, scenes, AT_ONCE)]
    features = torch.cat([see(model, to_pixels(part).to(words.device)) for part in parts])
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight /= projector.linear_1(features[:AT_ONCE]).std()
    features = features.flatten(0, 1)
    # Most patches show background, which is learned quickly.
    chances = torch.where(on, 3.0, 1.0)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = torch.multinomial(chances, PATCHES, replacement=True, generator=generator).to(words.device)
        F.mse_loss(projector(features[chosen]), targets[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()


def patch_words(scene: Scene, words: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the words of each patch, (patches, width), and whether it is on an object, (patches,).

    The words of an object are its colour, shape, size, digit if it has one, and the edges of its box; those of the
    background are its name.
    """
    labels = torch.from_numpy(dense_labels(scene, patch))
    on = labels[:, 1] < len(SHAPES)
    sums = embed(words, [scene.background]).repeat(len(labels), 1)
    own = dict(zip(DENSE, labels[on].T, strict=True))
    total = torch.zeros(int(on.sum()), words.shape[1])
    for key, names in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
        total += embed(words, names)[own[key]]
    marked = own["digit"] >= 0
    total[marked] += embed(words, map(str, range(10)))[own["digit"][marked]]
    for role, key in enumerate(("left", "top", "right", "bottom")):
        total += embed(words, LOCATIONS)[own[key]].roll(ROLE * role, -1)
    sums[on] = SHARE * total
    return sums, on


def embed(words: Tensor, names: Iterable[str]) -> Tensor:
    """Return the embeddings of some words, of shape (count, width)."""
    return words[torch.tensor([text.INDEX[name] for name in names])]
