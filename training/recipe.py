"""How long and how fast each stage trains: the numbers behind the shipped weights."""

from dataclasses import dataclass

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


RECIPE = Recipe(
    size=Size(),
    vision=Plan(steps=4000, matrix_rate=4e-3, other_rate=2e-3, flat=0.3),
    vision_batch=16,
    language=Plan(steps=2400, matrix_rate=5e-3, other_rate=2e-3),
    language_batch=8,
    align=Plan(steps=4500, matrix_rate=4e-3, other_rate=2e-3, warm_up=80, flat=0.5, floor=0.1),
    tune=Plan(steps=2400, matrix_rate=2e-3, other_rate=1e-3, flat=0.4),
    images=8,
    frozen=2,
)
"""Of the shipped weights."""
