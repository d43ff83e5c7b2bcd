"""Questions about scenes with their right answers.

Ten tasks mirror, by kind, the benchmarks of the paper (arXiv 2412.13180): localization in four forms (by attributes, by
relation, by place, in clutter), reading, attributes, counting, existence, a true-or-false relation, and a coarse
question about the whole picture. No task prefers a part of the picture: targets are drawn among all things, and every
rule is symmetric in left and right, top and bottom. A thing is referred to by as many attributes, and where needed by a
place or a neighbour, as make the reference unique.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import SceneQuestion
from training.world.questions import BOXES, write_box
from training.world.scenes import (
    BACKGROUNDS,
    CLUTTERED,
    COLOURS,
    SEEN,
    SHAPES,
    SIDE,
    UNSEEN,
    Item,
    Scene,
    World,
    draw,
)

HELD_OUT = 1_000_000
"""First seed of the benchmark, so that `sample(task, seed, i)` of a user does not repeat its questions."""

T = TypeVar("T")

Reference = tuple[str, ...]
"""The attributes of a thing that are named, in the order of the words."""

PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

FULL: Reference = ("size", "colour", "shape")

PARTIAL: list[Reference] = [("colour", "shape"), ("size", "shape"), ("size", "colour"), ("colour",), ("shape",)]

AMBIGUOUS: list[Reference] = [*PARTIAL, ()]
"""References that fit several things, so that a place or a neighbour is needed."""

STREAM = 2000
"""Number that separates these random numbers from those of training."""

CLEAR = 12
"""Pixels by which two centres must differ for one thing to be left of, or above, the other."""

Ask = Callable[[Scene, np.random.Generator], SceneQuestion | None]


@dataclass(frozen=True)
class SceneTask:
    """A kind of question; `ask` returns None for a scene that does not allow such a question."""

    name: str
    ask: Ask
    world: World = SEEN
    localizes: bool = False


def sample(task: str, seed: int, index: int, *, unseen: bool = False) -> tuple[Scene, SceneQuestion]:
    """Return question number `index` of a task and its scene; the same seed and index always give the same.

    Args:
        task: Name of a task in `TASKS`.
        seed: Seed of the split. Training draws other random numbers (see `training/`), so that no seed repeats its
            scenes.
        index: Number of the question within the split.
        unseen: Whether to draw sizes and counts that do not occur in training.

    Raises:
        PruningError: There is no such task.
    """
    chosen = get(task)
    rng = np.random.default_rng([seed, list(TASKS).index(task), index, int(unseen), STREAM])
    while True:
        scene = draw(rng, UNSEEN if unseen else chosen.world)
        question = chosen.ask(scene, rng)
        if question:
            return scene, question


def get(task: str) -> SceneTask:
    """Return the task of that name.

    Raises:
        PruningError: There is no such task.
    """
    if task not in TASKS:
        raise PruningError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[task]


def _matches(items: Sequence[Item], item: Item, reference: Reference) -> list[Item]:
    return [other for other in items if all(getattr(other, key) == getattr(item, key) for key in reference)]


def _phrase(item: Item, reference: Reference) -> str:
    words = [getattr(item, key) for key in reference]
    return " ".join(words if "shape" in reference else [*words, "thing"])


def _shuffled(rng: np.random.Generator, values: Sequence[T]) -> list[T]:
    return [values[i] for i in rng.permutation(len(values))]


def _unique(rng: np.random.Generator, scene: Scene, item: Item, options: Sequence[Reference]) -> Reference | None:
    """Return a reference that fits only this item."""
    return next((ref for ref in _shuffled(rng, options) if len(_matches(scene.items, item, ref)) == 1), None)


def _holds(relation: str, one: Item, other: Item) -> float:
    """Return by how many pixels the relation holds between two centres; negative where its opposite holds."""
    (x, y), (a, b) = one.centre, other.centre
    return {"left of": a - x, "right of": x - a, "above": b - y, "below": y - b}[relation]


def _where(task: str, phrase: str, item: Item, kind: str = "") -> SceneQuestion:
    return SceneQuestion(task, BOXES.ask(phrase), write_box(item.box), item.box, kind)


def _locate(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    item = scene.items[rng.integers(len(scene.items))]
    partial = _unique(rng, scene, item, PARTIAL) if rng.random() < 0.5 else None
    return _where("locate", _phrase(item, partial or FULL), item)


def _cluttered(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    item = scene.items[rng.integers(len(scene.items))]
    return _where("cluttered", _phrase(item, FULL), item)


def _relation(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    item = scene.items[rng.integers(len(scene.items))]
    named = [other for other in scene.items if len(_matches(scene.items, other, PARTIAL[0])) == 1]
    anchors = _shuffled(rng, [other for other in named if other is not item])
    for reference in _shuffled(rng, AMBIGUOUS):
        rivals = [other for other in _matches(scene.items, item, reference) if other is not item]
        for anchor in anchors:
            others = [other for other in rivals if other is not anchor]
            if not others:
                continue
            for relation in _shuffled(rng, list(OPPOSITE)):
                apart = all(_holds(relation, other, anchor) <= -CLEAR for other in others)
                if apart and _holds(relation, item, anchor) >= CLEAR:
                    phrase = f"{_phrase(item, reference)} {relation} the {_phrase(anchor, PARTIAL[0])}"
                    return _where("relation", phrase, item, relation)
    return None


def _place(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    item = scene.items[rng.integers(len(scene.items))]
    x, y = item.centre
    vertical, horizontal = "top" if y < SIDE / 2 else "bottom", "left" if x < SIDE / 2 else "right"

    def inside(other: Item) -> float:
        a, b = other.centre
        return min(
            (SIDE / 2 - b) * (1 if vertical == "top" else -1), (SIDE / 2 - a) * (1 if horizontal == "left" else -1)
        )

    for reference in _shuffled(rng, AMBIGUOUS):
        rivals = [other for other in _matches(scene.items, item, reference) if other is not item]
        if rivals and inside(item) >= CLEAR / 2 and all(inside(other) <= -CLEAR / 2 for other in rivals):
            place = f"{vertical} {horizontal}"
            return _where("place", f"{_phrase(item, reference)} at the {place}", item, place)
    return None


def _reading(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    signs = [item for item in scene.items if item.digit is not None]
    for item in _shuffled(rng, signs):
        reference = _unique(rng, scene, item, [("colour", "shape"), ("shape",)]) or FULL
        return SceneQuestion("reading", f"which digit is on the {_phrase(item, reference)} ?", str(item.digit))
    return None


def _attribute(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    for item in _shuffled(rng, scene.items):
        for asked, options in _shuffled(
            rng,
            [("colour", [("size", "shape"), ("shape",)]), ("shape", [("size", "colour"), ("colour",)])],
        ):
            reference = _unique(rng, scene, item, options)
            if reference:
                text = f"what {asked} is the {_phrase(item, reference)} ?"
                return SceneQuestion("attribute", text, getattr(item, asked), kind=asked)
    return None


def _counting(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    counts = Counter[str]({f"{colour} things": 0 for colour in COLOURS} | {PLURALS[shape]: 0 for shape in SHAPES})
    for item in scene.items:
        counts.update([f"{item.colour} things", PLURALS[item.shape]])
    # First the number, then the kind; otherwise nearly every answer would be 0 or 1.
    values = sorted({count for count in counts.values() if count <= 9})
    value = values[rng.integers(len(values))]
    kinds = [kind for kind, count in counts.items() if count == value]
    return SceneQuestion("counting", f"how many {kinds[rng.integers(len(kinds))]} are there ?", str(value))


def _existence(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    item = scene.items[rng.integers(len(scene.items))]
    reference = FULL if rng.random() < 0.5 else FULL[1:]
    if rng.random() < 0.5:
        return SceneQuestion("existence", f"is there a {_phrase(item, reference)} ?", "yes")
    # Colour and shape are uniform over scenes, so that a changed one is no hint; a changed size would be one.
    key, values = _shuffled(rng, [("colour", tuple(COLOURS)), ("shape", SHAPES)])[0]
    for value in _shuffled(rng, values):
        absent = replace(item, colour=value) if key == "colour" else replace(item, shape=value)
        if not _matches(scene.items, absent, reference):
            return SceneQuestion("existence", f"is there a {_phrase(absent, reference)} ?", "no")
    return None


def _spatial(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    named = [item for item in scene.items if len(_matches(scene.items, item, FULL[1:])) == 1]
    if len(named) < 2:
        return None
    one, other = _shuffled(rng, named)[:2]
    for relation in _shuffled(rng, list(OPPOSITE)):
        if abs(_holds(relation, one, other)) >= CLEAR:
            answer = "yes" if _holds(relation, one, other) > 0 else "no"
            text = f"is the {_phrase(one, FULL[1:])} {relation} the {_phrase(other, FULL[1:])} ?"
            return SceneQuestion("spatial", text, answer)
    return None


def _background(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    return SceneQuestion("background", "what is the background ?", scene.background)


TASKS = {
    task.name: task
    for task in (
        SceneTask("locate", _locate, localizes=True),
        SceneTask("relation", _relation, localizes=True),
        SceneTask("place", _place, localizes=True),
        SceneTask("cluttered", _cluttered, CLUTTERED, localizes=True),
        SceneTask("reading", _reading),
        SceneTask("attribute", _attribute),
        SceneTask("counting", _counting),
        SceneTask("existence", _existence),
        SceneTask("spatial", _spatial),
        SceneTask("background", _background),
    )
}
"""All tasks by name."""

LOCALIZATION = tuple(name for name, task in TASKS.items() if task.localizes)
"""The tasks that are answered with a box."""

_ANSWERS = (*COLOURS, *SHAPES, *BACKGROUNDS, "yes", "no", *map(str, range(10)))

WORDS = (
    *_ANSWERS, "small", "large", "thing", "things", *PLURALS.values(), "left", "right", "above", "below", "of", "top",
    "bottom", "where", "which", "what", "how", "many", "is", "are", "there", "the", "a", "on", "at", "in", "and",
    "digit", "colour", "shape", "background", "?", ".", ",", ":", "assistant:",
)  # fmt: skip
"""Every word in questions and answers."""
