"""Fits the projector before stage 3, so that each visual token says what its patch shows as the language model does.

The target of a visual token is the state that the language model has, after the layers that gather words, at the end of
a description of what the patch shows. So the lookup that the language model learned on text finds things in pictures
from the start, in the same layers. Vision encoders are usually trained with text, and projectors on captions, which
serves the same purpose; here the descriptions follow from the generated scene, and the projector is fitted by least
squares, in seconds.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaModel, LlavaForConditionalGeneration

from training import packed, text
from training.align import see
from training.build import BOS, PAD, to_pixels
from training.labels import DENSE, EDGES, FAR, dense_labels, shown
from training.vision import CLUTTER
from training.world.questions import BIN, LOCATIONS
from training.world.scenes import CLUTTERED, SEEN, Scene, draw

STREAM = 17
"""Separates the random numbers of this step from those of the stages."""
SEED = 5
AT_ONCE = 16
"""Scenes per forward pass of the vision encoder."""
PATCHES = 2048
"""Patches per step of the fit."""
EDGE_SCALE = 3.0
"""Scale of the words for the top, right and bottom edges, which no description says at one token."""
ROLE = 31
"""Number of places by which each edge of a box is rolled further than the previous, since all share their words."""


def begin_with_words(
    model: LlavaForConditionalGeneration,
    seed: int,
    layers: int,
    *,
    scenes: int = 192,
    steps: int = 600,
    rate: float = 4e-3,
) -> None:
    """Fit the untrained projector in place; the vision encoder and the decoder must be trained.

    Args:
        model: Model.
        seed: Seed of the scenes.
        layers: Number of decoder layers that gather words.
        scenes: Number of scenes.
        steps: Number of steps.
        rate: First learning rate.
    """
    drawn = []
    for i in range(scenes):
        rng = np.random.default_rng([SEED, seed, i, STREAM])
        drawn.append(draw(rng, CLUTTERED if rng.random() < CLUTTER else SEEN))
    decoder = model.model.language_model
    patch = model.config.vision_config.patch_size
    pairs = [patch_states(scene, decoder, layers, patch) for scene in drawn]
    targets, on = torch.cat([states for states, _ in pairs]), torch.cat([on for _, on in pairs])
    scale = targets.std()
    targets /= scale
    parts = [drawn[i : i + AT_ONCE] for i in range(0, scenes, AT_ONCE)]
    features = torch.cat([see(model, to_pixels(part).to(model.device)) for part in parts])
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight /= projector.linear_1(features[:AT_ONCE]).std()
    features = features.flatten(0, 1)
    # Patches of the background are learned quickly.
    chances = torch.where(on, 3.0, 1.0)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = torch.multinomial(chances, PATCHES, replacement=True, generator=generator).to(model.device)
        F.mse_loss(projector(features[chosen]), targets[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        projector.linear_2.weight *= scale
        projector.linear_2.bias *= scale


def patch_states(scene: Scene, decoder: LlamaModel, layers: int, patch: int) -> tuple[Tensor, Tensor]:
    """Return the target of each patch, (patches, width), and whether it shows a thing, (patches,).

    The description of a thing ends with the left edge of its box, if that is near the patch; the words for the other
    edges that are near are added.
    """
    labels = torch.from_numpy(dense_labels(scene, patch))
    owner = torch.from_numpy(shown(scene, patch))
    on = owner >= 0
    near = {edge: labels[on, list(DENSE).index(edge)] != FAR for edge in EDGES}
    texts = [f"the background is {scene.background}"]
    for item in scene.items:
        digit = "" if item.digit is None else f" with digit {item.digit}"
        begin = f"a {item.size} {item.colour} {item.shape}{digit} at"
        texts += [begin, f"{begin} {LOCATIONS[item.box[0] // BIN]}"]
    states = last_states(texts, decoder, layers)
    targets = states[0].repeat(len(labels), 1)
    targets[on] = states[1 + 2 * owner[on] + near["left"]]
    words = decoder.embed_tokens.weight.detach()
    boxes = torch.tensor([item.box for item in scene.items])[owner[on]]
    boxes[:, 2:] -= 1
    added = torch.zeros_like(targets[on])
    for role, edge in list(enumerate(EDGES))[1:]:
        places = embed(words, LOCATIONS)[boxes[near[edge], role] // BIN]
        added[near[edge]] += EDGE_SCALE * places.roll(ROLE * role, -1)
    targets[on] += added
    return targets, on


def last_states(texts: Sequence[str], decoder: LlamaModel, layers: int) -> Tensor:
    """Return the states of the last tokens of some texts after some layers, of shape (texts, width)."""
    tokens = [[BOS, *text.encode(one)] for one in texts]
    longest = max(map(len, tokens))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in tokens], device=decoder.device)
    with torch.no_grad():
        later = range(layers, len(decoder.layers))
        _, tapped = packed.run(decoder, decoder.embed_tokens(ids), taps=(layers,), skip=later)
    return tapped[layers][range(len(tokens)), [len(row) - 1 for row in tokens]]


def embed(words: Tensor, names: Iterable[str]) -> Tensor:
    """Return the embeddings of some words, of shape (count, width)."""
    return words[torch.tensor([text.INDEX[name] for name in names])]
