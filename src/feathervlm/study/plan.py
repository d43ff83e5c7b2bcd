"""Which layers, budgets and methods a study tries on a model of a given depth.

The paper's model has 32 layers; a model of another depth gets the layers at the nearest shares of its depth.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import GridShape
from feathervlm.core.schedule import layer_index
from feathervlm.methods import AveragePool, FastV, Feather, Method, PyramidDrop, RandomKeep, Uniform

EARLY = 3 / 32
"""The paper's K=3, where FastV prunes."""
QUARTER = 1 / 4
"""The paper's K=8."""


@dataclass(frozen=True)
class Plan:
    """What a study tries.

    Attributes:
        depth: Number of decoder layers.
        shape: Grid (frames, rows, cols) of a typical picture.
        quick: Whether to try fewer layers and budgets.
    """

    depth: int
    shape: GridShape
    quick: bool = False

    def layer(self, share: float) -> int:
        """Return the layer at a share of the depth."""
        return layer_index(share, self.depth)

    @property
    def early(self) -> int:
        """The layer at about a tenth of the depth."""
        return self.layer(EARLY)

    @property
    def quarter(self) -> int:
        """The layer at a quarter of the depth."""
        return self.layer(QUARTER)

    @property
    def layers(self) -> list[int]:
        """The layers before which criteria prune."""
        shares = (EARLY, 1 / 4, 1 / 2) if self.quick else (1 / 32, EARLY, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
        return sorted({self.layer(share) for share in shares})

    @property
    def kept(self) -> list[float]:
        """The shares of the tokens that FastV keeps; the paper removes 25, 50, 75 and 90 %."""
        return [0.5, 0.25] if self.quick else [0.75, 0.5, 0.25, 0.1]

    @property
    def budgets(self) -> list[float]:
        """The values of `keep` of FEATHER; in the paper they save 64 % and 48 % of the FLOPs."""
        return [0.3] if self.quick else [0.3, 0.6]

    def average(self, method: Method) -> float:
        """Return the expected number of visual tokens per layer of a method."""
        return method.schedule().average_tokens([self.shape], self.depth)

    def rivals(self, average: float) -> Iterator[tuple[str, Method]]:
        """Yield the methods that FEATHER is compared with, at the same average number of tokens where they reach it."""
        makers: list[tuple[str, Callable[[], Method]]] = [
            ("FastV", lambda: FastV(layer=self.early).solve(average, [self.shape], self.depth)),
            (
                "PyramidDrop",
                lambda: PyramidDrop(layers=tuple(map(self.layer, (1 / 4, 1 / 2, 3 / 4))), form="baseline").solve(
                    average, [self.shape], self.depth
                ),
            ),
            *(
                (
                    f"random {seed}",
                    lambda seed=seed: RandomKeep(layer=self.early, seed=seed).solve(  # type: ignore[misc]  # lambda
                        average, [self.shape], self.depth
                    ),
                )
                for seed in range(1 if self.quick else 3)
            ),
            ("uniform", lambda: self._grid(average, lambda layer, stride: Uniform(layer=layer, stride=stride))),
            ("pooling", lambda: self._grid(average, lambda layer, stride: AveragePool(layer=layer, stride=stride))),
        ]
        for name, make in makers:
            try:
                yield name, rounded(make())
            except PruningError:
                continue

    def _grid(self, average: float, make: Callable[[int, int], Method]) -> Method:
        """Return the method of the finest stride whose average comes within an eighth at some layer, else the closest.

        Strides are integers, so that few averages can be met. A coarser grid that prunes later may come closer but is a
        weaker method.
        """
        methods: Sequence[Method] = [make(layer, stride) for stride in range(2, 7) for layer in range(self.depth)]
        distance = {method: abs(self.average(method) - average) for method in methods}
        near = [method for method in methods if distance[method] <= average / 8]
        finest = [method for method in near if getattr(method, "stride", 0) == getattr(near[0], "stride", 0)]
        return min(finest or methods, key=lambda method: distance[method])


def rounded(method: Method) -> Method:
    """Return the method with its budget parameter rounded to four decimals, which changes no count of tokens."""
    if method.budget_parameter is None:
        return method
    return method.with_budget(round(float(getattr(method, method.budget_parameter)), 4))


def feather(plan: Plan, keep: float = 0.3, second: float = 1 / 2) -> Feather:
    """Return FEATHER with its second stage at a share of the depth."""
    return Feather(layers=(plan.quarter, plan.layer(second)), keep=keep)
