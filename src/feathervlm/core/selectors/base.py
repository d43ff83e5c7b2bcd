"""The algebra of selectors: what one is, what a budget is, and how two combine.

A selector turns scores and geometry into a bool keep mask (batch, visual). `A | B` keeps what either keeps, `A & B`
what both keep, and `A >> B` keeps A's tokens first and lets B fill up to B's own budget. Selectors never see text
tokens, and equal scores go to the lower index. Which selectors there are is not known here.
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
from feathervlm.core.validation import check_choice

Base = Literal["original", "current"]


class Selector(ABC):
    """Base of all selectors: a frozen dataclass whose fields are its parameters."""

    @abstractmethod
    def select(self, tokens: Candidates) -> Tensor:
        """Bool (batch, visual): the tokens to keep, a subset of `tokens.present`."""

    @abstractmethod
    def expected(self, image: ImageTokens) -> float:
        """How many tokens of an image stay; where that depends on the data, as if choices were independent."""

    def size(self, image: ImageTokens) -> int | None:
        """How many tokens of an image stay if that is certain beforehand, else None."""
        return None

    def criteria(self) -> Iterator[Criterion]:
        """Every criterion that is read, those of composed selectors included."""
        for parameter in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, parameter.name)
            if isinstance(value, Selector):
                yield from value.criteria()
            elif isinstance(value, Criterion):
                yield value

    def signals(self) -> Iterator[Signal]:
        """Every signal that is read, by composed selectors, too."""
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
    """Raise `PruningError` unless all are selectors."""
    for operand in operands:
        if not isinstance(operand, Selector):
            raise PruningError(f"Selectors combine with selectors such as Top(...) or Grid(...), not with {operand!r}.")


class Budgeted(Selector):
    """A selector that keeps `keep` tokens of every image, or all of an image that has fewer.

    Attributes:
        keep: fraction or number of tokens kept.
        of: whether a fraction is of the `original` count of tokens or of the `current` one.

    The budget holds for each image, so that none is lost to another.
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
            tokens: the candidates.
            first: bool (batch, visual), a subset of `tokens.present`. If an image has more of them than its budget
                allows, the selector chooses among them.

        Returns:
            bool (batch, visual).
        """

    def budget(self, tokens: Candidates) -> Tensor:
        """Tokens to keep: long (batch, images)."""
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
    """A selector that keeps the best `keep` tokens by one criterion."""

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
    """`a | b`: what either keeps. Its size depends on the overlap, unless `fixed`.

    With `fixed` the union is topped up with the next best of its ranked side to |a| + |b| tokens, the largest size
    it can have. Then the count is known beforehand: no device sync, one compiled graph.
    """

    a: Selector
    b: Selector
    fixed: bool = False

    def __post_init__(self) -> None:
        check_operands(self.a, self.b)
        if not isinstance(self.fixed, bool):
            raise PruningError(f"fixed={self.fixed!r} is neither true nor false.")
        if self.fixed and not isinstance(self.a, Ranked) and not isinstance(self.b, Ranked):
            raise PruningError("A fixed-size union needs a ranked side (Top or Random) to fill up from.")

    def select(self, tokens: Candidates) -> Tensor:
        """Both, or both and the next best."""
        a, b = self.a.select(tokens), self.b.select(tokens)
        if not self.fixed:
            return a | b
        ranked, other = (self.a, b) if isinstance(self.a, Ranked) else (self.b, a)
        assert isinstance(ranked, Ranked)
        budget = ranked.budget(tokens)
        extra = torch.zeros_like(budget).scatter_add_(1, tokens.geometry.image, other.long())
        return top_per_image(tokens.score(ranked.ranking), tokens, budget + extra, first=a | b)

    def expected(self, image: ImageTokens) -> float:
        """|a| + |b|, less the overlap of independent choices unless fixed."""
        a, b = self.a.expected(image), self.b.expected(image)
        overlap = 0.0 if self.fixed or not image.current else a * b / image.current
        return min(a + b - overlap, image.current)

    def size(self, image: ImageTokens) -> int | None:
        """Known if fixed and both sides are."""
        a, b = self.a.size(image), self.b.size(image)
        if not self.fixed or a is None or b is None:
            return None
        return min(a + b, int(image.current))


@dataclass(frozen=True)
class Intersection(Selector):
    """`a & b`: what both keep."""

    a: Selector
    b: Selector

    def __post_init__(self) -> None:
        check_operands(self.a, self.b)

    def select(self, tokens: Candidates) -> Tensor:
        """Both at once."""
        return self.a.select(tokens) & self.b.select(tokens)

    def expected(self, image: ImageTokens) -> float:
        """The overlap of independent choices."""
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
            raise PruningError(f"The right side of >> fills a budget, so it must have one as Top has, not {self.b!r}.")

    def select(self, tokens: Candidates) -> Tensor:
        """b's budget, a's tokens first."""
        return self.b.fill(tokens, self.a.select(tokens))

    def expected(self, image: ImageTokens) -> float:
        """b's budget."""
        return self.b.expected(image)

    def size(self, image: ImageTokens) -> int | None:
        """b's budget."""
        return self.b.size(image)


class ByFeatures(Budgeted):
    """A selector with a budget that compares feature vectors.

    Attributes:
        features: "vision", encoder patch features before the projector, "projected", the embeddings that enter the
            language model, or "hidden", the states that enter the stage's layer.
    """

    features: FeatureSource

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.features, get_args(FeatureSource), "features")

    def signals(self) -> Iterator[Signal]:
        """Those of criteria, and the features."""
        yield from super().signals()
        yield Features(self.features)
