"""How long and how fast each stage trains: the numbers behind the shipped weights."""

from dataclasses import dataclass

import typer

from training.build import Size
from training.loop import Plan


@dataclass(frozen=True)
class Recipe:
    """The plans of the four stages.

    Attributes:
        size: of the model.
        vision: stage 1, `vision_batch` scenes per step.
        language: stage 2, `language_batch` sequences per step.
        align: stage 3, with the first `frozen` decoder layers left as they are.
        tune: stage 4.
        images: per step of stages 3 and 4, shared by all processes.
    """

    size: Size
    vision: Plan
    vision_batch: int
    language: Plan
    language_batch: int
    align: Plan
    tune: Plan
    images: int
    frozen: int


RECIPES = {
    "base": Recipe(
        size=Size(),
        vision=Plan(steps=4000, matrix_rate=4e-3, other_rate=2e-3, flat=0.3),
        vision_batch=16,
        language=Plan(steps=3000, matrix_rate=5e-3, other_rate=2e-3),
        language_batch=8,
        align=Plan(steps=6500, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.5, floor=0.1),
        tune=Plan(steps=1000, matrix_rate=1.2e-3, other_rate=6e-4, flat=0.1),
        images=8,
        frozen=4,
    ),
    "deep": Recipe(
        size=Size(layers=16),
        vision=Plan(steps=4000, matrix_rate=4e-3, other_rate=2e-3, flat=0.3),
        vision_batch=16,
        language=Plan(steps=2400, matrix_rate=5e-3, other_rate=2e-3),
        language_batch=8,
        align=Plan(steps=4500, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.5, floor=0.1),
        tune=Plan(steps=800, matrix_rate=1.2e-3, other_rate=6e-4, flat=0.1),
        images=8,
        frozen=2,
    ),
}


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        typer.BadParameter: there is none.
    """
    if name not in RECIPES:
        raise typer.BadParameter(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
