"""Selectors against redundancy: drop what is too similar to a kept token, or keep what is least similar to pivots.

They differ in what decides first: a score (`GreedyThreshold`), pairs of tokens (`Dedup`), or pivots (`FarFromPivots`).
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
from feathervlm.core.signals import Features, FeatureSource, IsText, Keys, Signal, Text, TextPart, check_keys
from feathervlm.core.tensor_ops import first_n, lexsort, reserve_first, stable_cosines, to_float64, unit_vectors
from feathervlm.core.validation import check_choice, check_int, check_number

KEYS = Keys()


@dataclass(frozen=True)
class GreedyThreshold(ByFeatures):
    """Keep the best token repeatedly, and skip tokens more similar to it than tau (GreedyPrune, arXiv 2506.13166).

    When all remaining tokens are too similar to a kept one, the best of them fill the budget.

    Args:
        criterion: Criterion of the ranking.
        keep: Fraction or number of tokens kept.
        tau: Cosine in [-1, 1] above which two tokens are too similar; with 1 the criterion decides alone.
        features: "vision", "projected" or "hidden".
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: If a parameter is out of range.
    """

    criterion: Criterion
    keep: Keep
    tau: float = 0.9
    features: FeatureSource = "vision"
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion, "criterion")
        check_number(self.tau, "tau", minimum=-1, maximum=1)

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        images = ImageRows(tokens)
        directions = images.directions(self.features)
        picks = Picks(images, images.mark(first), self.budget(tokens).flatten())
        order = torch.sort(images.take(tokens.score(self.criterion)), dim=1, descending=True, stable=True).indices
        count = torch.arange(images.longest, 0, -1.0, device=order.device)
        worth = torch.zeros_like(images.present, dtype=torch.float32).scatter(1, order, count.expand(order.shape))
        for _ in range(kept(self.keep, images.longest)):
            index = picks.take(worth)
            similar = stable_cosines(directions, row_at(directions, index))[..., 0] > self.tau
            worth = torch.where(
                similar & (worth > 0), worth - images.longest, worth
            )  # below all tokens that are not similar
        return images.put(picks.chosen)


@dataclass(frozen=True)
class Dedup(ByFeatures):
    """Drop duplicates in rounds until the budget is met: the second half of VisPruner (arXiv 2412.01818).

    Tokens are lined up by the criterion, best first. In every round the tokens at odd places are compared with those at
    even places (counted from one), and the most similar of the former leave, `per_round` at a time. The rest of the
    former, the most similar first, and all of the latter form the new line. Of equally similar tokens the later one
    leaves. `A >> Dedup(...)` keeps A and fills up with the least duplicated of the other tokens.

    Args:
        criterion: Criterion of the line.
        keep: Fraction or number of tokens kept.
        features: "vision", "projected" or "hidden".
        per_round: Largest number of tokens that leave an image in a round.
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: If a parameter is out of range.
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
        images = ImageRows(tokens)
        if not images.longest:
            return first
        reserved, pool, budget = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        directions, scores = images.directions(self.features), images.take(tokens.score(self.criterion))
        # All pairs are compared in every round, so a few images are processed at a time.
        chunk = max(1, BLOCK // images.longest**2)
        remaining = []
        for start in range(0, len(pool), chunk):
            some = slice(start, start + chunk)
            remaining.append(self._rounds(directions[some], scores[some], pool[some], budget[some]))
        return images.put(reserved | torch.cat(remaining))

    def _rounds(self, directions: Tensor, scores: Tensor, pool: Tensor, budget: Tensor) -> Tensor:
        """Return the tokens of the pool that remain after all rounds, bool (images, n)."""
        similarity = stable_cosines(directions, directions)
        line = lexsort([(~pool).long(), -scores])
        count = torch.where(budget > 0, pool.sum(1), 0)
        place = torch.arange(pool.shape[1], device=pool.device)
        backward = place.flip(0).expand_as(line)
        even = place % 2 == 0
        for _ in range(self._most_rounds(pool.shape[1])):
            here = place < count[:, None]
            second = torch.zeros_like(pool).scatter(1, line, here & ~even)
            near = similarity.masked_fill(~second[:, None], float("-inf")).amax(-1).gather(1, line)
            group = torch.where(here, torch.where(even, 0, 1), 2)
            order = lexsort([group, torch.where(here & even, -near, place)], backward)
            leave = torch.minimum(((count + 1) // 2).clamp(max=self.per_round), (count - budget).clamp(min=0))
            # The tokens in front leave: they move to the end of the row.
            order = order.gather(1, (place + leave[:, None]) % len(place))
            line, count = line.gather(1, order), count - leave
        return torch.zeros_like(pool).scatter(1, line, place < count[:, None])

    def _most_rounds(self, tokens: int) -> int:
        """Return the number of rounds in which `tokens` tokens become one, the most that any budget needs."""
        rounds = 0
        while tokens > 1:
            tokens -= min(self.per_round, (tokens + 1) // 2, tokens - 1)
            rounds += 1
        return rounds


@dataclass(frozen=True)
class FarFromPivots(ByFeatures):
    """Keep some pivots and the tokens least similar to each of them (DART, arXiv 2502.11494).

    Pivots are taken in the order of their indices, text tokens after all others. Each in turn takes the tokens with the
    lowest cosine to it that have not been taken; all pivots take equally many, the first ones one more where the budget
    does not divide. DART's own count differs slightly: it takes a whole number for each of its eight pivots, four of
    which are text.

    Args:
        pivots: Selector of the pivots, which are kept; if they exceed the budget, the lowest indices of them.
        keep: Fraction or number of tokens kept, pivots included.
        features: "vision", "projected" or "hidden".
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.
        words: Number of text tokens that are pivots of every image as well: the tokens with the largest sum of |k|.
        text: Text that these are chosen from: "all" of the prompt, or the "question" after its last image.
        keys: Signal of k.

    Raises:
        PruningError: If a parameter is out of range.
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
        check_keys(self.keys)
        if self.words:
            Text(Features(self.features))  # checks that text has these features

    def signals(self) -> Iterator[Signal]:
        yield from super().signals()
        if self.words:
            yield from (IsText(self.text), Text(self.keys), Text(Features(self.features)))

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        images = ImageRows(tokens)
        directions = images.directions(self.features)
        reserved, pool, budget = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        pivots = images.mark(self.pivots.select(tokens))
        chosen = reserved | first_n([], pool & pivots, budget)
        budget, pool = budget - (chosen & ~reserved).sum(1), pool & ~pivots
        count, number = pivots.sum(1), pivots.cumsum(1)
        queries = []  # for every pivot its unit vectors (images, 1, dim), its number in each image, and where it exists
        for pivot in range(kept(self.pivots.keep, images.longest)):
            index = (pivots & (number == pivot + 1)).int().argmax(1, keepdim=True)
            queries.append((row_at(directions, index), torch.full_like(count, pivot), pivot < count))
        if self.words and images.longest:
            words, exist = self._words(tokens)
            queries += [(words[:, [word]], count + word, exist[:, word]) for word in range(words.shape[1])]
            count = count + exist.sum(1)
        each, rest = budget // count.clamp(min=1), budget % count.clamp(min=1)
        for direction, place, exists in queries:
            share = torch.where(exists, each + (place < rest).long(), 0)
            taken = first_n([stable_cosines(directions, direction)[..., 0]], pool, share)
            chosen, pool = chosen | taken, pool & ~taken
        return images.put(chosen)

    def _words(self, tokens: Candidates) -> tuple[Tensor, Tensor]:
        """Return the text pivots of every image: unit vectors (images, words, dim), and which exist (images, words)."""
        read = tokens.signals.read
        there = read(IsText(self.text))
        norms = to_float64(read(Text(self.keys)), there).abs().sum(-1).float()
        chosen = first_n([-norms], there, there.new_full(there.shape[:1], self.words, dtype=torch.long))
        index = lexsort([(~chosen).long()])[:, : self.words]
        there = chosen.gather(1, index)
        vectors = read(Text(Features(self.features)))
        vectors = vectors.gather(1, index.to(vectors.device)[..., None].expand(-1, -1, vectors.shape[-1]))
        directions = unit_vectors(vectors, there)
        images = tokens.geometry.images
        return directions.repeat_interleave(images, 0), there.repeat_interleave(images, 0)
