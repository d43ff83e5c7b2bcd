"""How the projector begins: each visual token near the words for what its patch shows.

Real vision encoders are trained with text and real projectors on captions before a model is asked anything, so that
visual tokens lie near words from the start. Here the generator knows the words, and the projector learns them by least
squares, in seconds, before stage 3. Knows scenes and word embeddings; knows nothing of questions.
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
"""Sets the random numbers of this step apart from those of the stages."""
SEED = 5
AT_ONCE = 16
"""Scenes the tower sees at once."""
PATCHES = 2048
"""Per step of the fit."""
SHARE = 1.5 / 7**0.5
"""An object's seven words are scaled to this, about the length of one word embedding and a half."""
ROLE = 31
"""The four edges of a box are the same words; each is turned by that many places more than the one before."""


def begin_with_words(
    model: LlavaForConditionalGeneration, seed: int, *, scenes: int = 192, steps: int = 600, rate: float = 4e-3
) -> None:
    """Fit the fresh projector in place; tower and word embeddings must be trained."""
    drawn = []
    for i in range(scenes):
        world = CLUTTERED if i % 5 == 0 else SEEN
        drawn.append(draw(np.random.default_rng([SEED, seed, i, STREAM]), world))
    words = model.model.language_model.embed_tokens.weight.detach()
    patch = model.config.vision_config.patch_size
    pairs = [said(scene, words.cpu(), patch) for scene in drawn]
    wanted, on = torch.cat([says for says, _ in pairs]).to(words.device), torch.cat([on for _, on in pairs])
    parts = [drawn[i : i + AT_ONCE] for i in range(0, scenes, AT_ONCE)]
    features = torch.cat([see(model, to_pixels(part).to(words.device)) for part in parts])
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight /= projector.linear_1(features[:AT_ONCE]).std()
    features = features.flatten(0, 1)
    # Most patches show background, which is soon learned.
    chances = torch.where(on, 3.0, 1.0)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        mine = torch.multinomial(chances, PATCHES, replacement=True, generator=generator).to(words.device)
        F.mse_loss(projector(features[mine]), wanted[mine]).backward()
        optimizer.step()
        optimizer.zero_grad()


def said(scene: Scene, words: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """What each patch is to say, (patches, width), and whether it lies on an object, (patches,).

    An object says its colour, shape, size, digit if it has one, and the edges of its box; background says its name.
    """
    labels = torch.from_numpy(dense_labels(scene, patch))
    on = labels[:, 1] < len(SHAPES)
    says = embed(words, [scene.background]).repeat(len(labels), 1)
    found = dict(zip(DENSE, labels[on].T, strict=True))
    total = torch.zeros(int(on.sum()), words.shape[1])
    for key, names in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
        total += embed(words, names)[found[key]]
    marked = found["digit"] >= 0
    total[marked] += embed(words, map(str, range(10)))[found["digit"][marked]]
    for role, key in enumerate(("left", "top", "right", "bottom")):
        total += embed(words, LOCATIONS)[found[key]].roll(ROLE * role, -1)
    says[on] = SHARE * total
    return says, on


def embed(words: Tensor, names: Iterable[str]) -> Tensor:
    """The embeddings of these words: (count, width)."""
    return words[torch.tensor([text.INDEX[name] for name in names])]
