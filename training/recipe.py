"""How large, how long and how fast: the numbers behind the shipped weights, and those of a smaller version."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import typer

from training.build import Size
from training.loop import Plan
from training.text import Mix

SHARES = {
    "locate": 4,
    "relation": 4,
    "place": 3,
    "reading": 3,
    "attribute": 3,
    "counting": 3,
    "existence": 4,
    "spatial": 8,
    "background": 1,
}
"""Questions of each task per image; in cluttered scenes `cluttered` takes the place of `locate`."""
LOOKING = {"locate": 10, "place": 3, "attribute": 2, "reading": 1, "counting": 1, "existence": 1, "background": 1}
"""The same where a recipe begins with localization above all."""


@dataclass(frozen=True)
class Recipe:
    """The plans of the four stages.

    Attributes:
        name: part of what tells one run from another.
        size: of the model.
        vision: stage 1, `vision_batch` scenes per step; None takes the tower of the shipped weights.
        language: stage 2, `language_batch` sequences per step.
        recall_first: this many first steps of stage 2 see nothing but phrases that come back (`text.recall`).
        text: what stage 2 reads otherwise.
        words: fit the projector to words before stage 3 (`words.begin_with_words`).
        align: stage 3, with the first `frozen` decoder layers left as they are.
        tune: stage 4.
        images: per step of stages 3 and 4, shared by all processes.
        looking: this many first steps of stage 3 ask `LOOKING`, with the first `frozen_looking` layers left as they
            are, so that those which gather the words of the question still do when later ones have learned to look.
        captions: so many objects of each image are described in stages 3 and 4, beside the questions.
        shares: questions of each task per image in stages 3 and 4.
        curriculum: the shares of stage 3 after which scenes may hold more objects (see `questions.MOST_OBJECTS`).
    """

    name: str
    size: Size
    vision: Plan | None
    vision_batch: int
    language: Plan
    language_batch: int
    align: Plan
    tune: Plan
    images: int
    frozen: int
    recall_first: int = 0
    text: Mix = field(default_factory=Mix)
    words: bool = False
    looking: int = 0
    frozen_looking: int = 0
    captions: int = 0
    shares: Mapping[str, int] = field(default_factory=lambda: SHARES)
    curriculum: tuple[float, ...] = (0.04, 0.09, 0.15, 0.22, 0.30)

    def run(self, seed: int) -> str:
        """What tells a run from those of other recipes and seeds."""
        return f"{self.name} seed {seed}"


RECIPES = {
    "shipped": Recipe(
        name="shipped",
        size=Size(),
        vision=Plan(steps=4000, matrix_rate=4e-3, other_rate=2e-3, flat=0.3),
        vision_batch=16,
        language=Plan(steps=2400, matrix_rate=5e-3, other_rate=2e-3),
        language_batch=8,
        align=Plan(steps=4500, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.5, floor=0.1),
        tune=Plan(steps=2400, matrix_rate=2e-3, other_rate=1e-3, flat=0.4),
        images=8,
        frozen=2,
    ),
    "small": Recipe(
        name="small",
        size=Size(layers=12, width=96, hidden=192),
        vision=None,
        vision_batch=16,
        language=Plan(steps=1300, matrix_rate=5e-3, other_rate=2e-3, flat=0.7),
        language_batch=8,
        recall_first=250,
        text=Mix(recall=0.1, bursty=0.3, questions=(10, 21)),
        words=True,
        looking=700,
        frozen_looking=6,
        captions=4,
        align=Plan(steps=2200, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.5, floor=0.1),
        tune=Plan(steps=400, matrix_rate=1.5e-3, other_rate=8e-4, flat=0.2),
        images=4,
        frozen=2,
        shares={**SHARES, "reading": 4, "attribute": 4, "counting": 4, "spatial": 3, "background": 2},
        curriculum=(0.08, 0.16, 0.24, 0.34, 0.45),
    ),
}
"""`shipped` is that of the shipped weights; `small` trains in an hour on one core, to compare seeds."""


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        typer.BadParameter: there is none.
    """
    if name not in RECIPES:
        raise typer.BadParameter(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
