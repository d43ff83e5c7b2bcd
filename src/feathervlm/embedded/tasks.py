"""Questions about scenes: what is asked, and what is right.

Ten tasks mirror, by kind, the benchmarks of the paper (arXiv 2412.13180): localization in four forms (by attributes, by
relation, by place, in clutter), reading, attributes, counting, existence, a true-or-false relation, and a coarse
question about the whole picture. No task prefers a part of the picture: targets are drawn among all objects, and
every rule is symmetric in left and right, top and bottom.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import BOXES, Question, write_box
from feathervlm.embedded.scenes import (
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
"""The benchmark's seeds start here, so that a user's own `sample(task, seed, i)` does not meet its questions."""


T = TypeVar("T")


Reference = tuple[str, ...]
"""Which attributes of an object are named, in the order in which they are spoken."""


PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "sign": "signs"}


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


FULL: Reference = ("size", "colour", "shape")


PARTIAL: list[Reference] = [("colour", "shape"), ("size", "shape"), ("size", "colour"), ("colour",), ("shape",)]


STREAM = 1000
"""Sets these random numbers apart from those of training."""


CLEAR = 8
"""Pixels by which two centres must differ before one object is left of, or above, the other."""


Ask = Callable[[Scene, np.random.Generator], Question | None]


@dataclass(frozen=True)
class Task:
    """A kind of question: `ask` returns None for a scene about which it has nothing to ask."""

    name: str
    ask: Ask
    world: World = SEEN
    localizes: bool = False


def sample(task: str, seed: int, index: int, *, unseen: bool = False) -> tuple[Scene, Question]:
    """Question number `index` of a task and its scene; the same seed and index always give the same.

    Args:
        task: a name in `TASKS`.
        seed: the split. Training draws other random numbers (see `training/`), so that no seed repeats its scenes.
        index: the number of the question within the split.
        unseen: draw object sizes and counts which do not occur in training.

    Raises:
        PruningError: there is no such task.
    """
    chosen = get(task)
    rng = np.random.default_rng([seed, list(TASKS).index(task), index, int(unseen), STREAM])
    while True:
        scene = draw(rng, UNSEEN if unseen else chosen.world)
        question = chosen.ask(scene, rng)
        if question:
            return scene, question


def get(task: str) -> Task:
    """The task of that name.

    Raises:
        PruningError: there is no such task.
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
    """A reference that only this item answers to."""
    return next((ref for ref in _shuffled(rng, options) if len(_matches(scene.items, item, ref)) == 1), None)


def _holds(relation: str, one: Item, other: Item) -> float:
    """By how many pixels the relation holds between two centres (negative: by how many its opposite holds)."""
    (x, y), (a, b) = one.centre, other.centre
    return {"left of": a - x, "right of": x - a, "above": b - y, "below": y - b}[relation]


def _where(task: str, phrase: str, item: Item, kind: str = "") -> Question:
    return Question(task, BOXES.ask(phrase), write_box(item.box), item.box, kind)


def _locate(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = scene.items[rng.integers(len(scene.items))]
    partial = _unique(rng, scene, item, PARTIAL) if rng.random() < 0.5 else None
    return _where("locate", _phrase(item, partial or FULL), item)


def _cluttered(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = scene.items[rng.integers(len(scene.items))]
    return _where("cluttered", _phrase(item, FULL), item)


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = scene.items[rng.integers(len(scene.items))]
    for reference in _shuffled(rng, [("shape",), ("colour",), ()]):
        rivals = [other for other in _matches(scene.items, item, reference) if other is not item]
        for anchor in _shuffled(rng, scene.items):
            others = [other for other in rivals if other is not anchor]
            named = _unique(rng, scene, anchor, PARTIAL[:1])
            if anchor is item or named is None or not others:
                continue
            for relation in _shuffled(rng, list(OPPOSITE)):
                apart = all(_holds(relation, other, anchor) <= -CLEAR for other in others)
                if apart and _holds(relation, item, anchor) >= CLEAR:
                    phrase = f"{_phrase(item, reference)} {relation} the {_phrase(anchor, named)}"
                    return _where("relation", phrase, item, relation)
    return None


def _place(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = scene.items[rng.integers(len(scene.items))]
    x, y = item.centre
    vertical, horizontal = "top" if y < SIDE / 2 else "bottom", "left" if x < SIDE / 2 else "right"

    def inside(other: Item) -> float:
        a, b = other.centre
        return min(
            (SIDE / 2 - b) * (1 if vertical == "top" else -1), (SIDE / 2 - a) * (1 if horizontal == "left" else -1)
        )

    for reference in _shuffled(rng, [("shape",), ("colour",), ()]):
        rivals = [other for other in _matches(scene.items, item, reference) if other is not item]
        if rivals and inside(item) >= CLEAR / 2 and all(inside(other) <= -CLEAR / 2 for other in rivals):
            place = f"{vertical} {horizontal}"
            return _where("place", f"{_phrase(item, reference)} at the {place}", item, place)
    return None


def _reading(scene: Scene, rng: np.random.Generator) -> Question | None:
    signs = [item for item in scene.items if item.digit is not None]
    for item in _shuffled(rng, signs):
        reference = _unique(rng, scene, item, [("colour", "shape"), ("shape",)]) or FULL
        return Question("reading", f"which digit is on the {_phrase(item, reference)} ?", str(item.digit))
    return None


def _attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    for item in _shuffled(rng, scene.items):
        for asked, options in _shuffled(
            rng,
            [("colour", [("size", "shape"), ("shape",)]), ("shape", [("size", "colour"), ("colour",)])],
        ):
            reference = _unique(rng, scene, item, options)
            if reference:
                text = f"what {asked} is the {_phrase(item, reference)} ?"
                return Question("attribute", text, getattr(item, asked), kind=asked)
    return None


def _counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter[str]({f"{colour} things": 0 for colour in COLOURS} | {PLURALS[shape]: 0 for shape in SHAPES})
    for item in scene.items:
        counts.update([f"{item.colour} things", PLURALS[item.shape]])
    # First the number, then the kind: else nearly every answer would be nought or one.
    values = sorted({count for count in counts.values() if count <= 9})
    value = values[rng.integers(len(values))]
    kinds = [kind for kind, count in counts.items() if count == value]
    return Question("counting", f"how many {kinds[rng.integers(len(kinds))]} are there ?", str(value))


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = scene.items[rng.integers(len(scene.items))]
    reference = FULL if rng.random() < 0.5 else FULL[1:]
    if rng.random() < 0.5:
        return Question("existence", f"is there a {_phrase(item, reference)} ?", "yes")
    # Colour and shape are uniform over scenes, so that a changed one betrays nothing; a changed size would.
    key, values = _shuffled(rng, [("colour", tuple(COLOURS)), ("shape", SHAPES)])[0]
    for value in _shuffled(rng, values):
        absent = replace(item, colour=value) if key == "colour" else replace(item, shape=value)
        if not _matches(scene.items, absent, reference):
            return Question("existence", f"is there a {_phrase(absent, reference)} ?", "no")
    return None


def _spatial(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = [item for item in scene.items if len(_matches(scene.items, item, FULL[1:])) == 1]
    if len(named) < 2:
        return None
    one, other = _shuffled(rng, named)[:2]
    for relation in _shuffled(rng, list(OPPOSITE)):
        if abs(_holds(relation, one, other)) >= CLEAR:
            answer = "yes" if _holds(relation, one, other) > 0 else "no"
            text = f"is the {_phrase(one, FULL[1:])} {relation} the {_phrase(other, FULL[1:])} ?"
            return Question("spatial", text, answer)
    return None


def _background(scene: Scene, rng: np.random.Generator) -> Question | None:
    return Question("background", "what is the background ?", scene.background)


TASKS = {
    task.name: task
    for task in (
        Task("locate", _locate, localizes=True),
        Task("relation", _relation, localizes=True),
        Task("place", _place, localizes=True),
        Task("cluttered", _cluttered, CLUTTERED, localizes=True),
        Task("reading", _reading),
        Task("attribute", _attribute),
        Task("counting", _counting),
        Task("existence", _existence),
        Task("spatial", _spatial),
        Task("background", _background),
    )
}
"""All tasks by name."""


LOCALIZATION = tuple(name for name, task in TASKS.items() if task.localizes)
"""The tasks which are answered with a box."""


_ANSWERS = (*COLOURS, *SHAPES, *BACKGROUNDS, "yes", "no", *map(str, range(10)))


WORDS = (
    *_ANSWERS, "small", "large", "thing", "things", *PLURALS.values(), "left", "right", "above", "below", "of", "top",
    "bottom", "where", "which", "what", "how", "many", "is", "are", "there", "the", "a", "on", "at", "in", "and",
    "digit", "colour", "shape", "background", "?", ".", ",", ":", "assistant:",
)  # fmt: skip
"""Every word that questions and answers use."""
