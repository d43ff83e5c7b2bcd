"""KNN: density-peak clustering as a pruning criterion."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import FeatureSource, KNNDensity, Layer, Schedule, Stage, Top, check_int
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class KNN(Method):
    """Keep the density peaks of the vision encoder's features (DPC-KNN), one token for each cluster.

    It does not read the text. Features are the encoder's, before the projector.

    Paper and code: for the densest token the paper takes its largest distance, the code the largest of the whole image,
    as here. Ties are broken by index instead of by random noise.

    Args:
        layer: Tokens leave before this layer.
        count: Number of tokens (clusters) kept per image.
        neighbors: k of the density, the token itself included.
        features: `vision`, or `projected` where only embeddings are known.
    """

    name: ClassVar[str] = "knn"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), phi_KNN"
    budget_parameter: ClassVar[str | None] = None

    layer: Layer = 3 / 32
    count: int = 196
    neighbors: int = 5
    features: FeatureSource = "vision"

    def schedule(self) -> Schedule:
        check_int(self.count, "count", minimum=2)
        return Schedule(Stage(self.layer, Top(KNNDensity(self.neighbors, self.features), self.count)))
