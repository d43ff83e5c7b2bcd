"""Finding the budget parameter of a method for an average number of tokens."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Picture
from feathervlm.core.schedule import Schedule


class Solvable(Protocol):
    """An object with a schedule and a copy with another value of its budget parameter, such as a method."""

    def with_budget(self, value: float) -> Any:
        """Return a copy whose budget parameter is `value` in (0, 1]."""
        ...

    def schedule(self) -> Schedule:
        """Return the schedule."""
        ...


S = TypeVar("S", bound=Solvable)


def solve(method: S, average: float, grids: Sequence[Sequence[int] | Picture], depth: int, tolerance: float = 0.5) -> S:
    """Set the budget parameter of a method by bisection so that it costs `average` visual tokens per layer.

    Counts that depend on the data (unions) enter with their expected size.

    Args:
        method: A method with a budget parameter.
        average: Visual tokens per layer, averaged over all layers.
        grids: (frames, rows, cols) of each image of a typical sample.
        depth: Number of layers of the language model.
        tolerance: Largest difference of the best reachable average, in tokens per image.

    Returns:
        A copy of the method.

    Raises:
        PruningError: If no value of the parameter comes that close.
    """

    def cost(value: float) -> float:
        schedule: Schedule = method.with_budget(value).schedule()
        return schedule.average_tokens(grids, depth)

    tolerance *= len(grids)  # whole tokens leave every image at once
    low, high = 1e-6, 1.0
    if not cost(low) - tolerance <= average <= cost(high) + tolerance:
        raise PruningError(
            f"An average of {average:g} visual tokens is out of reach: this method spans {cost(low):.1f} to "
            f"{cost(high):.1f} tokens per layer here. Change its layers or the average."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < average else (low, middle)
    best: float = min((low, high), key=lambda value: abs(cost(value) - average))
    if abs(cost(best) - average) > tolerance:
        raise PruningError(f"The closest average to {average:g} visual tokens is {cost(best):.1f}; ask for that.")
    solved: S = method.with_budget(best)
    return solved
