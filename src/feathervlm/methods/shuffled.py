"""The paper's probe of positions: what if a model did not know where its visual tokens are?"""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.fixed import KeepAll
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class ShuffledPositions(Method):
    """Exchange the positions of an image's visual tokens at random, then let another method prune, if one is given.

    Tokens keep their order and text its positions; only the rotations of the visual tokens change. It costs nearly all
    of localization and little else (arXiv 2412.13180, A4), which tells what positions are worth: an experiment.

    Args:
        method: the method that prunes, a spec in parentheses on the command line; without one every token stays.
        seed: of the permutation, which is the same in any batch.
    """

    name: ClassVar[str] = "shuffled-positions"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), A4"
    free: ClassVar[str | None] = None

    method: Method | None = None
    seed: int = 0

    def schedule(self) -> Schedule:
        """One stage at layer 0 that keeps everything, then those of the method."""
        if self.method is not None and not isinstance(self.method, Method):
            raise PruningError(
                f"method={self.method!r} is not a method; write shuffled-positions:method=(fastv:keep=0.25)."
            )
        stages = () if self.method is None else self.method.schedule().stages
        if any(stage.at == 0 for stage in stages):
            raise PruningError(
                f"{self.method} has a stage at layer 0, where positions are shuffled; let it prune at layer 1 or later."
            )
        return Schedule(Stage(0, KeepAll(), positions="shuffle", seed=self.seed), *stages)
