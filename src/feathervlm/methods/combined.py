"""Several methods joined by `+` in a spec."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from feathervlm.core import Chained, PruningError, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Combined(Method, registered=False):
    """Prune with several methods, each of which gets the tokens that the one before it leaves.

    A fraction that a method keeps is one of the original tokens, as if it ran alone, unless it says otherwise
    (`of="current"`). `solve` changes the budget of the last method that has one.

    Args:
        methods: Two or more methods in the order in which they prune; at most one merges in the vision encoder, and
            each stage must be deeper than the one before.

    Raises:
        PruningError: If two methods work in the vision encoder, or there are fewer than two methods.
    """

    name: ClassVar[str] = "combined"
    paper: ClassVar[str] = "a combination"
    budget_parameter: ClassVar[str | None] = None

    methods: tuple[Method, ...]

    def schedule(self) -> Schedule:
        if len(self.methods) < 2 or not all(isinstance(method, Method) for method in self.methods):
            raise PruningError(f"methods={self.methods!r} must be two or more methods, such as (ToMe(), Feather()).")
        schedules = [method.schedule() for method in self.methods]
        merging = [str(m) for m, schedule in zip(self.methods, schedules, strict=True) if schedule.encoder is not None]
        if len(merging) > 1:
            raise PruningError(f"{' and '.join(merging)} both work in the vision encoder; leave one of them out.")
        stages: list[Stage] = []
        for stage in (stage for schedule in schedules for stage in schedule.stages):
            if stages and stage.at == stages[-1].at:
                stages[-1] = self._together(stages[-1], stage)
            else:
                stages.append(stage)
        encoder = next((schedule.encoder for schedule in schedules if schedule.encoder is not None), None)
        return Schedule(*stages, encoder=encoder)

    def _together(self, first: Stage, second: Stage) -> Stage:
        """Return one stage for two at the same layer."""
        if replace(first, select=second.select, seed=0) != Stage(first.at, second.select):
            raise PruningError(
                f"{self} has two stages at layer {first.at}, of which the first merges, moves positions or cuts "
                "caches; give the second a deeper layer."
            )
        if first.seed and second.seed and first.seed != second.seed:
            raise PruningError(f"{self} has two seeds at layer {first.at}, {first.seed} and {second.seed}; give one.")
        return replace(second, select=Chained(first.select, second.select), seed=first.seed or second.seed)

    def with_budget(self, value: float) -> Self:
        last = max((at for at, method in enumerate(self.methods) if method.budget_parameter), default=None)
        if last is None:
            raise PruningError(f"No method of {self} has a budget parameter to solve for; choose another one.")
        changed = self.methods[last].with_budget(value)
        return replace(self, methods=(*self.methods[:last], changed, *self.methods[last + 1 :]))

    def __str__(self) -> str:
        return "+".join(map(str, self.methods))
