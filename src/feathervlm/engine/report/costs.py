"""What a pruned forward cost: visual tokens per layer, and FLOPs and cached numbers as shares of the unpruned ones."""

from collections.abc import Callable, Sequence

from torch import Tensor

from feathervlm.core.cost import flops, kv_numbers
from feathervlm.engine.report.records import Record

Cost = Callable[[list[int], list[int]], float]
"""Maps the tokens of the input and the tokens of previous turns, both per layer, to a cost."""


class Costs:
    """The cost of one pruned forward.

    Args:
        record: The record of the forward.
        kept: For each stage, the number of visual tokens that each sample kept.
    """

    def __init__(self, record: Record, kept: Sequence[Sequence[int]]) -> None:
        self._record, self._kept = record, kept
        self._totals = record.layout.counts
        self.tokens = [
            self._per_layer(total, [counts[sample] for counts in kept]) for sample, total in enumerate(self._totals)
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
        """FLOPs of the decoder's prefill, text included, over those of the unpruned one.

        Args:
            samples: The samples to count; None for all.
        """
        return self._ratio(lambda tokens, past: flops(self._record.costs, tokens, past), self.tokens, samples)

    def kv_ratio(self) -> float:
        """Keys and values after the prefill over those of the unpruned one, without padding."""
        return self._ratio(
            lambda tokens, past: kv_numbers(self._record.costs, [n + p for n, p in zip(tokens, past, strict=True)]),
            self.cached(),
        )

    def selection_seconds(self) -> float:
        """Seconds of scoring and selecting, summed over the stages."""
        return sum(stage.seconds() for stage in self._record.stages)

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

    def _ratio(self, cost: Cost, visual: list[list[int]], samples: Sequence[int] | None = None) -> float:
        record = self._record
        batch = range(len(self._totals))
        lengths = [record.sequence] * len(batch) if record.attended is None else record.attended.sum(1).tolist()
        pruned: float = 0  # stays a whole number, which is exact, if the costs are
        unpruned: float = 0
        for sample in batch if samples is None else samples:
            length, text = lengths[sample], lengths[sample] - self._totals[sample]
            pruned += cost([text + tokens for tokens in visual[sample]], self.past(sample))
            unpruned += cost([length] * len(record.costs), [record.past] * len(record.costs))
        return pruned / unpruned


def _padding(past: tuple[int, Tensor | None], sample: int) -> int:
    slots, real = past
    return 0 if real is None else int((~real[sample, :slots]).sum())
