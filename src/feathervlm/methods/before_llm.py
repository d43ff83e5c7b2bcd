"""The paper's probe: what if the tokens that a method drops had never entered the language model?"""

from dataclasses import dataclass, field
from typing import ClassVar

from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf
from feathervlm.methods.base import Method
from feathervlm.methods.fastv import FastV


@dataclass(frozen=True)
class BeforeLLM(Method):
    """Let only the tokens that another method would leave enter the language model, at their original positions.

    The other method runs first, in a scoring pass of its own without a cache; its last survivors enter layer 0 of the
    second run. This costs more than it saves: it is an experiment (arXiv 2412.13180, Fig. 4 and Table 2), which tells
    how much the early layers had already read from the tokens that were dropped later.

    Args:
        method: the method that chooses, a spec in parentheses on the command line.
    """

    name: ClassVar[str] = "before-llm"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), Fig. 4"
    free: ClassVar[str | None] = None

    method: Method = field(default=FastV())

    def schedule(self) -> Schedule:
        """One stage at layer 0."""
        if not isinstance(self.method, Method):
            raise PruningError(f"method={self.method!r} is not a method; write before-llm:method=(fastv:keep=0.25).")
        return Schedule(Stage(0, SurvivorsOf(Survivors(self.method.schedule()))))
