"""Prune before the language model what another method would drop inside it."""

from dataclasses import dataclass, field
from typing import ClassVar

from feathervlm.core import Schedule, Stage, Survivors, SurvivorsOf
from feathervlm.methods.base import Method, check_method
from feathervlm.methods.lookup import get


@dataclass(frozen=True)
class BeforeLLM(Method):
    """Let only the tokens that another method would keep enter the language model, at their original positions.

    The other method runs first, in a scoring pass of its own without a cache, which ends before the layer of its last
    stage; the tokens that remain then enter layer 0 of the second run. The prefill costs a few percent more than with
    the other method inside the language model, but all layers cache only the tokens that remain. The paper uses it as
    an experiment (arXiv 2412.13180, Fig. 4 and Table 2) on how much the early layers read from tokens that are dropped
    later.

    Args:
        method: The method that selects, a spec in parentheses on the command line.
    """

    name: ClassVar[str] = "before-llm"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), Fig. 4"
    budget_parameter: ClassVar[str | None] = None

    method: Method = field(default_factory=lambda: get("fastv"))

    def schedule(self) -> Schedule:
        check_method(self.method, "before-llm:method=(fastv:keep=0.25)")
        return Schedule(Stage(0, SurvivorsOf(Survivors(self.method.schedule()))))
