"""The algebra of selectors: what a selector and a budget are, and how two selectors combine.

A selector turns scores and geometry into a bool keep mask (batch, visual). `A | B` keeps what either keeps, `A & B`
what both keep, and `A >> B` keeps A's tokens first and lets B fill up to B's own budget. Selectors never see text
tokens, and of equal scores the lower index wins.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens, Keep, check_keep, kept, kept_tensor
from feathervlm.core.candidates import Candidates, Criterion, top_per_image
from feathervlm.core.errors import PruningError
from feathervlm.core.signals import Features, FeatureSource, Signal
from feathervlm.core.validation import check_bool, check_choice

Base = Literal["original", "current"]


class Selector(ABC):
    """Base of all selectors: a frozen dataclass whose fields are its parameters."""

    @abstractmethod
    def select(self, tokens: Candidates) -> Tensor:
        """Select the tokens to keep: bool (batch, visual), a subset of `tokens.present`."""

    @abstractmethod
    def expected(self, image: ImageTokens) -> float:
        """Return how many tokens of an image are expected to stay; data-dependent choices count as independent."""

    def size(self, image: ImageTokens) -> int | None:
        """Return how many tokens of an image stay if that is certain beforehand, else None."""
        return None

    def criteria(self) -> Iterator[Criterion]:
        """Yield every criterion that is read, including those of composed selectors."""
        for parameter in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, parameter.name)
            if isinstance(value, Selector):
                yield from value.criteria()
            elif isinstance(value, Criterion):
                yield value

    def signals(self) -> Iterator[Signal]:
        """Yield every signal that is read, including those of composed selectors."""
        for parameter in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, parameter.name)
            if isinstance(value, Selector | Criterion):
                yield from value.signals()

    def __or__(self, other: "Selector") -> "Union":
        return Union(self, other)

    def __and__(self, other: "Selector") -> "Intersection":
        return Intersection(self, other)

    def __rshift__(self, other: "Budgeted") -> "Fill":
        return Fill(self, other)


def check_operands(*operands: object) -> None:
    """Raise `PruningError` unless all operands are selectors."""
    for operand in operands:
        if not isinstance(operand, Selector):
            raise PruningError(f"{operand!r} is not a selector; combine selectors such as Top(...) or Grid(...).")


class Budgeted(Selector):
    """A selector that keeps `keep` tokens of every image, or all tokens of an image that has fewer.

    Attributes:
        keep: Fraction or number of tokens kept.
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    The budget holds for each image, so that no image is lost to another.
    """

    keep: Keep
    of: Base

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_choice(self.of, ("original", "current"), "of")

    @abstractmethod
    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        """Fill the budget of every image, with the tokens `first` before all others.

        Args:
            tokens: The candidates.
            first: bool tensor of shape (batch, visual), a subset of `tokens.present`. If an image has more of them than
                its budget allows, the selector chooses among them.

        Returns:
            Bool tensor of shape (batch, visual).
        """

    def budget(self, tokens: Candidates) -> Tensor:
        """Return the number of tokens to keep: long (batch, images)."""
        return kept_tensor(self.keep, tokens.original() if self.of == "original" else tokens.current())

    def select(self, tokens: Candidates) -> Tensor:
        """The budget of every image, filled with the selector's own choice."""
        return self.fill(tokens, torch.zeros_like(tokens.present))

    def expected(self, image: ImageTokens) -> float:
        """The budget, capped by what is there."""
        if self.of == "current":
            return min(float(kept(self.keep, round(image.current))), image.current)
        return min(float(kept(self.keep, image.original)), image.current)

    def size(self, image: ImageTokens) -> int | None:
        """The budget."""
        return int(self.expected(image))


class Ranked(Budgeted):
    """A selector that keeps the `keep` tokens with the highest scores of one criterion."""

    @property
    @abstractmethod
    def ranking(self) -> Criterion:
        """The criterion by which tokens are ranked."""

    def criteria(self) -> Iterator[Criterion]:
        """The ranking alone."""
        yield self.ranking

    def signals(self) -> Iterator[Signal]:
        """Those of the ranking."""
        yield from self.ranking.signals()

    def select(self, tokens: Candidates) -> Tensor:
        """The best of every image."""
        return top_per_image(tokens.score(self.ranking), tokens, self.budget(tokens))

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        """The given tokens and the best of the others."""
        return top_per_image(tokens.score(self.ranking), tokens, self.budget(tokens), first)


@dataclass(frozen=True)
class Union(Selector):
    """`a | b`: what either selector keeps. Its size depends on the overlap, unless `fixed`.

    With `fixed` the union is filled up with the next best tokens of its ranked side to |a| + |b| tokens, the largest
    size it can have. Then the count is known beforehand: no device sync, one compiled graph.

    Args:
        a: A selector.
        b: A selector.
        fixed: Whether the union is filled up.
    """

    a: Selector
    b: Selector
    fixed: bool = False

    def __post_init__(self) -> None:
        check_operands(self.a, self.b)
        check_bool(self.fixed, "fixed")
        if self.fixed and not isinstance(self.a, Ranked) and not isinstance(self.b, Ranked):
            raise PruningError("A union with fixed=True needs a ranked side (Top or Random) to fill up from.")

    def select(self, tokens: Candidates) -> Tensor:
        a, b = self.a.select(tokens), self.b.select(tokens)
        if not self.fixed:
            return a | b
        ranked, other = (self.a, b) if isinstance(self.a, Ranked) else (self.b, a)
        assert isinstance(ranked, Ranked)
        budget = ranked.budget(tokens)
        extra = torch.zeros_like(budget).scatter_add_(1, tokens.geometry.image, other.long())
        return top_per_image(tokens.score(ranked.ranking), tokens, budget + extra, first=a | b)

    def expected(self, image: ImageTokens) -> float:
        a, b = self.a.expected(image), self.b.expected(image)
        overlap = 0.0 if self.fixed or not image.current else a * b / image.current
        return min(a + b - overlap, image.current)

    def size(self, image: ImageTokens) -> int | None:
        a, b = self.a.size(image), self.b.size(image)
        if not self.fixed or a is None or b is None:
            return None
        return min(a + b, int(image.current))


@dataclass(frozen=True)
class Intersection(Selector):
    """`a & b`: what both selectors keep."""

    a: Selector
    b: Selector

    def __post_init__(self) -> None:
        check_operands(self.a, self.b)

    def select(self, tokens: Candidates) -> Tensor:
        return self.a.select(tokens) & self.b.select(tokens)

    def expected(self, image: ImageTokens) -> float:
        if not image.current:
            return 0.0
        return self.a.expected(image) * self.b.expected(image) / image.current


@dataclass(frozen=True)
class Fill(Selector):
    """`a >> b`: a's tokens first, then b's choice, never more than b's budget.

    If a alone exceeds the budget, b chooses among a's tokens.
    """

    a: Selector
    b: Budgeted

    def __post_init__(self) -> None:
        check_operands(self.a)
        if not isinstance(self.b, Budgeted):
            raise PruningError(f"{self.b!r} on the right of >> has no budget to fill; use a selector such as Top(...).")

    def select(self, tokens: Candidates) -> Tensor:
        return self.b.fill(tokens, self.a.select(tokens))

    def expected(self, image: ImageTokens) -> float:
        return self.b.expected(image)

    def size(self, image: ImageTokens) -> int | None:
        return self.b.size(image)


class ByFeatures(Budgeted):
    """A selector with a budget that compares feature vectors.

    Attributes:
        features: "vision", encoder patch features before the projector; "projected", the embeddings that enter the
            language model; or "hidden", the states that enter the stage's layer.
    """

    features: FeatureSource

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.features, get_args(FeatureSource), "features")

    def signals(self) -> Iterator[Signal]:
        yield from super().signals()
        yield Features(self.features)
