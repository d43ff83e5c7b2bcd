"""The selectors that most methods consist of: the best by a criterion, random tokens, and a uniform grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens, Keep
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.criteria.random_score import RandomScore
from feathervlm.core.errors import PruningError
from feathervlm.core.selectors.base import Base, Ranked, Selector
from feathervlm.core.validation import is_int


@dataclass(frozen=True)
class Top(Ranked):
    """Keep the `keep` tokens with the highest scores; of equal scores the lower index.

    Args:
        criterion: Criterion of the scores.
        keep: Fraction or number of tokens kept.
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    >>> Top(LastTokenAttention(rope=False), keep=0.3) | Grid(stride=3)  # doctest: +SKIP
    """

    criterion: Criterion
    keep: Keep
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion, "criterion")

    @property
    def ranking(self) -> Criterion:
        return self.criterion


@dataclass(frozen=True)
class Random(Ranked):
    """Keep `keep` random tokens, the same ones in any batch.

    Args:
        keep: Fraction or number of tokens kept.
        seed: Seed of the choice.
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.
    """

    keep: Keep
    seed: int = 0
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        RandomScore(self.seed)  # checks the seed

    @property
    def ranking(self) -> Criterion:
        return RandomScore(self.seed)


@dataclass(frozen=True)
class Grid(Selector):
    """Keep rows and columns 0, s, 2s, ... of every frame: ceil(rows/s) * ceil(cols/s) tokens (arXiv 2412.13180).

    Rows and columns are counted over the whole of a plane, whatever its tiles.

    Args:
        stride: S, or (frame, row, column) strides. With an int every frame is kept.

    >>> from feathervlm.core.layout import picture_of
    >>> Grid(3).expected(ImageTokens(picture_of((1, 27, 27)), 729))
    81.0
    """

    stride: int | Sequence[int]

    def __post_init__(self) -> None:
        strides = self.stride if isinstance(self.stride, Sequence) else (1, self.stride, self.stride)
        if len(strides) != 3 or not all(map(is_int, strides)):
            raise PruningError(
                f"stride={self.stride!r} must be a whole number of at least 1, or (frame, row, column) strides."
            )
        if isinstance(self.stride, Sequence):
            object.__setattr__(self, "stride", tuple(strides))

    @property
    def strides(self) -> tuple[int, int, int]:
        """(frame, row, column) strides."""
        if isinstance(self.stride, int):
            return 1, self.stride, self.stride
        frame, row, col = self.stride
        return frame, row, col

    def select(self, tokens: Candidates) -> Tensor:
        place = tokens.geometry
        frame, row, col = self.strides
        return tokens.present & (place.frame % frame == 0) & (place.row % row == 0) & (place.col % col == 0)

    def expected(self, image: ImageTokens) -> float:
        cells = 0
        for plane in image.picture:
            frames, rows, cols = (-(-side // stride) for side, stride in zip(plane.shape, self.strides, strict=True))
            cells += frames * rows * cols
        return cells * image.current / image.original

    def size(self, image: ImageTokens) -> int | None:
        return int(self.expected(image)) if image.current == image.original else None
