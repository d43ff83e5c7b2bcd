"""What the vision encoder is taught about each patch of a scene, and about the scene as a whole.

A patch has the labels of the thing that is seen on most of it, if that covers a quarter of the patch or has its middle
there. All things are labelled alike. An edge of the thing's box is labelled relative to the patch, and only within
`REACH` pixels of the patch's middle, so that a patch of a large thing does not carry its whole box.
"""

import numpy as np
from numpy.typing import NDArray

from training.world.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Scene

REACH = 18
"""Largest distance in pixels from the middle of a patch to an edge that is near it."""
STEP = 3
"""Width in pixels of a class of near edges."""
FAR = 2 * REACH // STEP
"""Class of an edge that is not near."""
SHARE = 1 / 4
"""Share of a patch that a thing has to cover, unless its middle is there."""
MIDDLE_PIXELS = 8
"""Number of pixels that a thing has to show on the patch of its middle."""
EMPTY = 0.3
"""Weight of a patch without a thing in the losses."""
MOST = 9
"""Largest count; higher counts have the same label."""
NOTHING = -100
"""Label that does not count."""

EDGES = ("left", "top", "right", "bottom")
DENSE = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES),
    "digit": 10,
    **dict.fromkeys(EDGES, FAR + 1),
    "middle": 2,
}
"""Numbers of classes per patch; the last colour and shape are those of a patch without a thing."""
GLOBAL = {"background": len(BACKGROUNDS)} | dict.fromkeys((*COLOURS, *SHAPES), MOST + 1)
"""Numbers of classes per scene: the background, and how many things have each colour and shape."""


def shown(scene: Scene, patch: int) -> NDArray[np.int64]:
    """Return the number of the thing that each patch shows, of shape (patches,); -1 where there is none."""
    across = SIDE // patch
    tiles = scene.owner.reshape(across, patch, across, patch).swapaxes(1, 2).reshape(across * across, -1)
    count = len(scene.items) + 1
    cells = np.arange(across * across)
    index = tiles.astype(np.int64) + 1 + count * cells[:, None]
    area = np.bincount(index.ravel(), minlength=count * len(cells)).reshape(-1, count)[:, 1:]
    middle = np.zeros(area.shape, bool)
    for i, item in enumerate(scene.items):
        x, y = (int(value) // patch for value in item.centre)
        middle[y * across + x, i] = True
    middle &= area > MIDDLE_PIXELS
    best = (area + middle * patch * patch).argmax(1)
    on = (area[cells, best] >= SHARE * patch * patch) | middle[cells, best]
    return np.where(on, best, -1)


def dense_labels(scene: Scene, patch: int) -> NDArray[np.int64]:
    """Return the classes of `DENSE` for each patch, of shape (patches, 9)."""
    across = SIDE // patch
    owner = shown(scene, patch)
    labels = np.full((across * across, len(DENSE)), NOTHING)
    labels[:, 0], labels[:, 1] = len(COLOURS), len(SHAPES)
    colours = list(COLOURS)
    looks = np.array(
        [
            (
                colours.index(item.colour),
                SHAPES.index(item.shape),
                SIZES.index(item.size),
                NOTHING if item.digit is None else item.digit,
            )
            for item in scene.items
        ]
    )
    boxes = np.array([item.box for item in scene.items])
    on = owner >= 0
    thing = owner[on]
    y, x = (place[on] for place in np.divmod(np.arange(across * across), across))
    labels[on, :4] = looks[thing]
    middles = patch * np.stack([x, y, x, y], 1) + patch / 2
    classes = np.floor((boxes[thing] - middles + REACH) / STEP).astype(np.int64)
    labels[on, 4:8] = np.where((classes >= 0) & (classes < FAR), classes, FAR)
    centres = (boxes[:, :2] + boxes[:, 2:])[thing] // 2 // patch
    labels[on, 8] = (centres[:, 0] == x) & (centres[:, 1] == y)
    return labels


def patch_weights(scene: Scene, patch: int) -> NDArray[np.float32]:
    """Return the weight of each patch in the losses, of shape (patches,).

    The patches of a thing that is seen on n of them have the weight 1 / sqrt(n), so that large things, which are seen
    on most of the labelled patches, do not decide alone what is learned. Patches without a thing, which are learned
    soon, have the weight `EMPTY`.
    """
    owner = shown(scene, patch)
    counts = np.bincount(owner[owner >= 0], minlength=len(scene.items))
    return np.where(owner >= 0, counts[owner].clip(1) ** -0.5, EMPTY).astype(np.float32)


def global_labels(scene: Scene) -> list[int]:
    """Return the classes of `GLOBAL`."""
    counts = [sum(item.colour == colour for item in scene.items) for colour in COLOURS]
    counts += [sum(item.shape == shape for item in scene.items) for shape in SHAPES]
    return [BACKGROUNDS.index(scene.background), *(min(count, MOST) for count in counts)]
