"""Experiment: shuffle the positions of the visual tokens."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import KeepAll, PruningError, Schedule, Stage
from feathervlm.methods.base import Method, check_method


@dataclass(frozen=True)
class ShuffledPositions(Method):
    """Exchange the positions of an image's visual tokens at random, then let another method prune, if one is given.

    Tokens keep their order and the text keeps its positions; only the rotations of the visual tokens change. It costs
    nearly all of localization and little else (arXiv 2412.13180, A4): an experiment on what positions are worth.

    Args:
        method: The method that prunes, a spec in parentheses on the command line; without one every token stays.
        seed: Seed of the permutation, which is the same in any batch.
    """

    name: ClassVar[str] = "shuffled-positions"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), A4"
    budget_parameter: ClassVar[str | None] = None

    method: Method | None = None
    seed: int = 0

    def schedule(self) -> Schedule:
        if self.method is not None:
            check_method(self.method, "shuffled-positions:method=(fastv:keep=0.25)")
        stages = () if self.method is None else self.method.schedule().stages
        if any(stage.at == 0 for stage in stages):
            raise PruningError(
                f"{self.method} has a stage at layer 0, where positions are shuffled; let it prune at layer 1 or later."
            )
        return Schedule(Stage(0, KeepAll(), positions="shuffle", seed=self.seed), *stages)
