"""The recipes: sizes, steps and learning rates of the shipped weights and of a smaller model."""

from dataclasses import dataclass, field

import typer

from training.build import Size
from training.loop import Plan
from training.questions import Asked
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
MORE_FOR_TOP = (0.6, 0.8, 0.2, 0.2)
"""Loss weights of left, top, right and bottom: top comes after left and is learned after it."""


@dataclass(frozen=True)
class Looking:
    """A different start of stage 3, with more frozen layers, which keep what the language model learned there.

    Attributes:
        steps: Number of steps.
        frozen: Number of first layers that do not change.
        asked: The questions about each image.
    """

    steps: int
    frozen: int
    asked: Asked


@dataclass(frozen=True)
class Recipe:
    """The plans of the four stages.

    Attributes:
        name: Name of the recipe, which also identifies a run.
        size: Dimensions of the model.
        vision: Plan of stage 1; None uses the vision encoder of the shipped weights.
        vision_batch: Scenes per step of stage 1.
        language: Plan of stage 2.
        language_batch: Sequences per step of stage 2.
        align: Plan of stage 3.
        tune: Plan of stage 4.
        images: Images per step of stages 3 and 4, of all processes together.
        frozen: Number of first decoder layers that stage 3 does not change.
        recall_first: Number of first steps of stage 2 with nothing but repeated phrases (`text.recall`).
        text: Mix of the other text of stage 2.
        words: Whether to fit the projector to words before stage 3 (`words.begin_with_words`).
        looking: Start of stage 3, if it is different.
        asked: The questions about each image in stages 3 and 4.
        curriculum: Shares of stage 3 after which scenes may have more objects (see `questions.MOST_OBJECTS`).
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
    looking: Looking | None = None
    asked: Asked = field(default_factory=lambda: Asked(SHARES))
    curriculum: tuple[float, ...] = (0.04, 0.09, 0.15, 0.22, 0.30)

    def run(self, seed: int) -> str:
        """Return the name that identifies a run of this recipe and seed."""
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
        looking=Looking(
            1000,
            6,
            Asked({"locate": 12, "place": 4, "attribute": 2, "background": 1}, captions=4, coordinates=MORE_FOR_TOP),
        ),
        align=Plan(steps=2400, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.6, floor=0.1),
        tune=Plan(steps=800, matrix_rate=3e-3, other_rate=1.5e-3, flat=0.4),
        images=4,
        frozen=2,
        asked=Asked(
            {**SHARES, "reading": 4, "attribute": 4, "counting": 4, "spatial": 3, "background": 2},
            captions=4,
            coordinates=MORE_FOR_TOP,
        ),
        curriculum=(0.09, 0.18, 0.27, 0.39, 0.52),
    ),
}
"""`shipped` made the shipped weights; `small` takes an hour and a quarter on one core and is used to compare seeds."""


def find(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        typer.BadParameter: If there is no such recipe.
    """
    if name not in RECIPES:
        raise typer.BadParameter(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
