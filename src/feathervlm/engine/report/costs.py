"""What a pruned forward cost: visual tokens per layer, and FLOPs and cached numbers as shares of the unpruned ones."""

from collections.abc import Callable, Sequence

from torch import Tensor

from feathervlm.core.cost import LayerCost, flops, kv_numbers
from feathervlm.engine.report.records import Record

Cost = Callable[[Sequence[LayerCost], Sequence[int], Sequence[int]], int]
"""Maps costs of layers, tokens of the input and tokens of previous turns, all per layer, to a cost."""


class Costs:
    """The cost of one pruned forward.

    Args:
        record: The record of the forward.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._kept: list[list[int]] = [stage.kept.sum(1).tolist() for stage in record.stages]
        self._scoring = [Costs(scoring) for scoring in record.scoring]
        self._totals = record.layout.counts
        lengths = [record.sequence] * len(self._totals) if record.attended is None else record.attended.sum(1).tolist()
        self._lengths: list[int] = lengths
        self.tokens = [
            self._per_layer(total, [counts[at] for counts in self._kept]) for at, total in enumerate(self._totals)
        ]
        """For each sample, the visual tokens that each layer saw."""

    def cached(self) -> list[list[int]]:
        """For each sample, the visual tokens that each layer has cached after later stages have cut what it saw."""
        cached = [list(tokens) for tokens in self.tokens]
        for stage, counts in zip(self._record.stages, self._kept, strict=True):
            if stage.cut:
                for tokens, count in zip(cached, counts, strict=True):
                    tokens[: stage.layer] = [count] * stage.layer
        return cached

    def average_tokens(self) -> float:
        """Visual tokens per layer, averaged over layers and over the samples that have images; 0 without any."""
        averages = [sum(tokens) / len(tokens) for tokens, total in zip(self.tokens, self._totals, strict=True) if total]
        return sum(averages) / len(averages) if averages else 0.0

    def flops_ratio(self, samples: Sequence[int] | None = None) -> float:
        """FLOPs of the decoder's prefill, text and scoring passes included, over those of the unpruned one.

        Args:
            samples: The samples to count; None for all.
        """
        return self._ratio(self.flops, flops, samples)

    def scoring_ratio(self) -> float:
        """FLOPs of the scoring passes over those of the unpruned prefill."""
        return self._ratio(self.scoring_flops, flops)

    def flops(self, sample: int) -> int:
        """FLOPs of one sample's prefill, text and scoring passes included."""
        own = flops(self._record.costs, self._with_text(self.tokens, sample), self.past(sample))
        return own + self.scoring_flops(sample)

    def scoring_flops(self, sample: int) -> int:
        """FLOPs of one sample's scoring passes."""
        return sum(scoring.flops(sample) for scoring in self._scoring)

    def kv_ratio(self) -> float:
        """Keys and values after the prefill over those of the unpruned one, without padding."""
        cached = self.cached()

        def stored(sample: int) -> int:
            return _stored(self._record.costs, self._with_text(cached, sample), self.past(sample))

        return self._ratio(stored, _stored)

    def selection_seconds(self) -> float:
        """Seconds of scoring and selecting, summed over the stages."""
        own = sum(stage.seconds() for stage in self._record.stages)
        return own + sum(scoring.selection_seconds() for scoring in self._scoring)

    def past(self, sample: int) -> list[int]:
        """Tokens of previous turns that each layer has cached, without padding."""
        record, numbers = self._record, []
        before = record.past if record.before is None else record.before[0] - _padding(record.before, sample)
        stages = {stage.layer: stage.past for stage in record.stages}
        slots: dict[str, tuple[int, Tensor | None]] | None = None
        for layer, kind in enumerate(record.types):
            slots = stages.get(layer, slots)
            of_kind = None if slots is None else slots.get(kind, (0, None))
            numbers.append(before if of_kind is None else of_kind[0] - _padding(of_kind, sample))
        return numbers

    def _per_layer(self, before: int, per_stage: list[int]) -> list[int]:
        """Expand a number before the first stage and one for each stage to one for each layer."""
        starts = dict(zip((stage.layer for stage in self._record.stages), per_stage, strict=True))
        current, numbers = before, []
        for layer in range(len(self._record.costs)):
            current = starts.get(layer, current)
            numbers.append(current)
        return numbers

    def _with_text(self, visual: list[list[int]], sample: int) -> list[int]:
        """Add a sample's other tokens to its visual tokens per layer."""
        text = self._lengths[sample] - self._totals[sample]
        return [text + tokens for tokens in visual[sample]]

    def _ratio(self, cost: Callable[[int], int], unpruned: Cost, samples: Sequence[int] | None = None) -> float:
        """Return the sum of the samples' costs over the sum of their unpruned ones."""
        record = self._record
        chosen = range(len(self._totals)) if samples is None else samples
        past = [record.past] * len(record.costs)
        whole = sum(unpruned(record.costs, [self._lengths[sample]] * len(record.costs), past) for sample in chosen)
        return sum(map(cost, chosen)) / whole


def _stored(costs: Sequence[LayerCost], tokens: Sequence[int], past: Sequence[int]) -> int:
    return kv_numbers(costs, [new + before for new, before in zip(tokens, past, strict=True)])


def _padding(past: tuple[int, Tensor | None], sample: int) -> int:
    slots, real = past
    return 0 if real is None else int((~real[sample, :slots]).sum())
