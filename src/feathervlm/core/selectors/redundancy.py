"""Selectors against redundancy: leave out what is too like a token that stays, or keep what is least like it.

They differ in what decides first: a score (Greedy), pairs of tokens (Dedup), or a few given tokens (Far). They compare
features and know nothing of positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.budget import Keep, kept
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.selectors.base import Base, Budgeted, ByFeatures
from feathervlm.core.selectors.diversity import Picks, row_at
from feathervlm.core.signals import Features, FeatureSource, IsText, Keys, Signal, Text, TextPart
from feathervlm.core.tensor_ops import first_n, lexsort, reserve_first, stable_cosines, to_float64
from feathervlm.core.validation import check_choice, check_int

KEYS = Keys()


@dataclass(frozen=True)
class GreedyThreshold(ByFeatures):
    """Keep the best token again and again, and leave out those more similar to it than tau (GreedyPrune, 2506.13166).

    When only tokens are left that are too similar to a kept one, the best of these fill the budget.

    Args:
        criterion: what is best.
        keep: fraction or number of tokens kept.
        tau: cosine in [-1, 1] above which two tokens are too similar; 1 lets the criterion decide alone.
        features: "vision", "projected" or "hidden".
        of: whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    keep: Keep
    tau: float = 0.9
    features: FeatureSource = "vision"
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion, "criterion")
        if isinstance(self.tau, bool) or not isinstance(self.tau, int | float) or not -1 <= self.tau <= 1:
            raise PruningError(f"tau={self.tau!r} is no cosine; give a number in [-1, 1], such as 0.9.")

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        """The best that are not too similar to each other, the given tokens before all others."""
        images = ImageRows(tokens)
        directions = images.directions(self.features)
        picks = Picks(images, images.mark(first), self.budget(tokens).flatten())
        order = torch.sort(images.take(tokens.score(self.criterion)), dim=1, descending=True, stable=True).indices
        count = torch.arange(images.longest, 0, -1.0, device=order.device)
        worth = torch.zeros_like(images.present, dtype=torch.float32).scatter(1, order, count.expand(order.shape))
        for _ in range(kept(self.keep, images.longest)):
            index = picks.take(worth)
            similar = stable_cosines(directions, row_at(directions, index))[..., 0] > self.tau
            worth = torch.where(similar & (worth > 0), worth - images.longest, worth)  # below all that are not
        return images.put(picks.chosen)


@dataclass(frozen=True)
class Dedup(ByFeatures):
    """Drop duplicates in rounds until the budget is met: the second half of VisPruner (arXiv 2412.01818).

    Tokens are lined up by the criterion, best first. In every round those in odd places are compared with those in
    even places (counted from one), and the most similar of the former leave, `per_round` at a time. Then those that
    stayed, the most similar in front, and all of the latter make the new line. Of equally similar tokens the one
    behind leaves. `A >> Dedup(...)` keeps A and fills up with the least duplicated of the rest.

    Args:
        criterion: lines the tokens up.
        keep: fraction or number of tokens kept.
        features: "vision", "projected" or "hidden".
        per_round: tokens that leave an image in a round, at most.
        of: whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    keep: Keep
    features: FeatureSource = "vision"
    per_round: int = 8
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion, "criterion")
        check_int(self.per_round, "per_round")

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        """What is left after all rounds, besides the given tokens."""
        images = ImageRows(tokens)
        if not images.longest:
            return first
        held, pool, wanted = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        directions, scores = images.directions(self.features), images.take(tokens.score(self.criterion))
        # All pairs are compared in every round, so some images at a time keep their similarities.
        chunk = max(1, BLOCK // images.longest**2)
        left = []
        for start in range(0, len(pool), chunk):
            some = slice(start, start + chunk)
            left.append(self._rounds(directions[some], scores[some], pool[some], wanted[some]))
        return images.put(held | torch.cat(left))

    def _rounds(self, directions: Tensor, scores: Tensor, pool: Tensor, wanted: Tensor) -> Tensor:
        """Those of the pool that are left, bool (images, n)."""
        similarity = stable_cosines(directions, directions)
        line = lexsort([(~pool).long(), -scores])
        count = torch.where(wanted > 0, pool.sum(1), 0)
        place = torch.arange(pool.shape[1], device=pool.device)
        backward = place.flip(0).expand_as(line)
        even = place % 2 == 0
        for _ in range(self._most_rounds(pool.shape[1])):
            here = place < count[:, None]
            second = torch.zeros_like(pool).scatter(1, line, here & ~even)
            near = similarity.masked_fill(~second[:, None], float("-inf")).amax(-1).gather(1, line)
            group = torch.where(here, torch.where(even, 0, 1), 2)
            order = lexsort([group, torch.where(here & even, -near, place)], backward)
            leave = torch.minimum(((count + 1) // 2).clamp(max=self.per_round), (count - wanted).clamp(min=0))
            order = order.gather(1, (place + leave[:, None]) % len(place))  # those in front leave, to the very end
            line, count = line.gather(1, order), count - leave
        return torch.zeros_like(pool).scatter(1, line, place < count[:, None])

    def _most_rounds(self, tokens: int) -> int:
        """Rounds in which so many tokens become one, which no other budget exceeds."""
        rounds = 0
        while tokens > 1:
            tokens -= min(self.per_round, (tokens + 1) // 2, tokens - 1)
            rounds += 1
        return rounds


@dataclass(frozen=True)
class FarFromPivots(ByFeatures):
    """Keep some pivots and the tokens least similar to each of them (DART, arXiv 2502.11494).

    Pivots are taken in the order of their indices, text tokens behind all others. Each in turn takes the tokens of
    lowest cosine to it that nobody has taken yet, all pivots equally many and the first ones the odd ones. DART's own
    count is a little off the budget: it takes a whole number for each of its eight pivots, four of which are text.

    Args:
        pivots: selector of the pivots, which are kept; if they exceed the budget, the lowest indices of them.
        keep: fraction or number of tokens kept, pivots included.
        features: "vision", "projected" or "hidden".
        of: whether a fraction is of the `original` count of tokens or of the `current` one.
        words: text tokens that are pivots of every image, too: those whose keys have the largest sum of |k|.
        text: these are of "all" the prompt, or "behind" its last image.
        keys: the keys.

    Raises:
        PruningError: if a parameter is out of range.
    """

    pivots: Budgeted
    keep: Keep
    features: FeatureSource = "vision"
    of: Base = "original"
    words: int = 0
    text: TextPart = "question"
    keys: Keys = KEYS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pivots, Budgeted):
            raise PruningError(f"pivots={self.pivots!r} must be a selector with a budget, such as Top(..., keep=4).")
        check_int(self.words, "words", minimum=0)
        check_choice(self.text, get_args(TextPart), "text")
        if not isinstance(self.keys, Keys):
            raise PruningError(f"keys={self.keys!r} must be Keys(...).")
        if self.words:
            Text(Features(self.features))  # checks that text has these, too

    def signals(self) -> Iterator[Signal]:
        """Those of the pivots, the features, and keys and features of text if there are such pivots."""
        yield from super().signals()
        if self.words:
            yield from (IsText(self.text), Text(self.keys), Text(Features(self.features)))

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        """The given tokens, then pivots, then those far from pivots."""
        images = ImageRows(tokens)
        directions = images.directions(self.features)
        held, pool, wanted = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        pivots = images.mark(self.pivots.select(tokens))
        chosen = held | first_n([], pool & pivots, wanted)
        wanted, pool = wanted - (chosen & ~held).sum(1), pool & ~pivots
        count, number = pivots.sum(1), pivots.cumsum(1)
        asking = []  # for every pivot its directions (images, 1, dim), its number in each image, and where it exists
        for pivot in range(kept(self.pivots.keep, images.longest)):
            index = (pivots & (number == pivot + 1)).int().argmax(1, keepdim=True)
            asking.append((row_at(directions, index), torch.full_like(count, pivot), pivot < count))
        if self.words and images.longest:
            words, exist = self._words(tokens)
            asking += [(words[:, [word]], count + word, exist[:, word]) for word in range(words.shape[1])]
            count = count + exist.sum(1)
        each, rest = wanted // count.clamp(min=1), wanted % count.clamp(min=1)
        for direction, place, exists in asking:
            share = torch.where(exists, each + (place < rest).long(), 0)
            taken = first_n([stable_cosines(directions, direction)[..., 0]], pool, share)
            chosen, pool = chosen | taken, pool & ~taken
        return images.put(chosen)

    def _words(self, tokens: Candidates) -> tuple[Tensor, Tensor]:
        """Text that is a pivot of every image: directions (images, words, dim), and which there are."""
        read = tokens.signals.read
        there = read(IsText(self.text))
        loudness = to_float64(read(Text(self.keys)), there).abs().sum(-1).float()
        chosen = first_n([-loudness], there, there.new_full(there.shape[:1], self.words, dtype=torch.long))
        index = lexsort([(~chosen).long()])[:, : self.words]
        there = chosen.gather(1, index)
        vectors = read(Text(Features(self.features)))
        vectors = vectors.gather(1, index.to(vectors.device)[..., None].expand(-1, -1, vectors.shape[-1]))
        directions = torch.nn.functional.normalize(to_float64(vectors, there), dim=-1)
        images = tokens.geometry.images
        return directions.repeat_interleave(images, 0), there.repeat_interleave(images, 0)
