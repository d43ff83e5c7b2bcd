"""What a pruned forward cost: visual tokens per layer, and FLOPs and cached numbers as shares of the unpruned ones."""

from collections.abc import Callable, Sequence

from torch import Tensor

from feathervlm.core.cost import LayerCost, Others, flops, kv_numbers
from feathervlm.core.schedule import ModeTokens
from feathervlm.engine.report.records import Record
from feathervlm.engine.report.stage import StageReport

Cost = Callable[[Sequence[LayerCost], Sequence[int], Sequence[int]], int]
"""Maps costs of layers, tokens of the input and tokens of previous turns, all per layer, to a cost."""


class Costs:
    """The cost of one pruned forward.

    Args:
        record: The record of the forward.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._stages = [StageReport.of(stage) for stage in record.stages]
        self._scoring = [Costs(scoring) for scoring in record.scoring]
        self._totals = record.layout.counts
        lengths = [record.sequence] * len(self._totals) if record.attended is None else record.attended.sum(1).tolist()
        self._lengths: list[int] = lengths
        samples = range(len(self._totals))
        self.modes = [self._per_layer(sample) for sample in samples]
        """For each sample, the visual tokens of every mode in each layer."""
        self.tokens = [[int(layer.running) for layer in modes] for modes in self.modes]
        """For each sample, the visual tokens that ran in each layer."""

    @property
    def frozen(self) -> list[list[int]]:
        """For each sample, the visual tokens that were frozen, or skipped a half, in each layer."""
        return [[int(layer.frozen) for layer in modes] for modes in self.modes]

    @property
    def waiting(self) -> list[list[int]]:
        """For each sample, the visual tokens that were not in a layer and could come back."""
        return [[int(layer.waiting) for layer in modes] for modes in self.modes]

    def cached(self) -> list[list[int]]:
        """For each sample, the visual tokens that each layer has cached after later stages have cut what it saw."""
        cached = [[int(layer.running + layer.frozen) for layer in modes] for modes in self.modes]
        for stage, record in zip(self._stages, self._record.stages, strict=True):
            if record.cut:
                for tokens, kept in zip(cached, stage.kept, strict=True):
                    tokens[: stage.layer] = [len(kept)] * stage.layer
        return cached

    def average_tokens(self) -> float:
        """Visual tokens that ran per layer, averaged over layers and over the samples that have images; 0 without."""
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
        tokens, others = self._with_text(self.tokens, sample), self._others(sample)
        return flops(self._record.costs, tokens, self.past(sample), others) + self.scoring_flops(sample)

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

    def _per_layer(self, sample: int) -> list[ModeTokens]:
        """Return the number of visual tokens of every mode in each layer."""
        starts = {
            stage.layer: ModeTokens.of(
                stage, len(stage.kept[sample]), len(stage.left[sample]), len(stage.means[sample])
            )
            for stage in self._stages
        }
        current, layers = ModeTokens(self._totals[sample]), []
        for layer in range(len(self._record.costs)):
            current = starts.get(layer, current)
            layers.append(current)
        return layers

    def _others(self, sample: int) -> list[Others | None]:
        """Return the tokens of each layer that are read and do not run all of it."""
        stages = {stage.layer: stage for stage in self._stages}
        current: StageReport | None = None
        known: dict[tuple[int, int | None, bool], Others | None] = {}
        layers = []
        for layer, cost in enumerate(self._record.costs):
            current = stages.get(layer, current)
            key = -1 if current is None else current.layer, cost.window, cost.causal
            if key not in known:
                known[key] = None if current is None else self._frozen(current, sample, cost)
            layers.append(known[key])
        return layers

    def _frozen(self, stage: StageReport, sample: int, cost: LayerCost) -> Others | None:
        record, left = self._record, stage.left[sample]
        if stage.leave != "freeze" or not len(left):
            return None
        if stage.skip == "mlp":
            return Others(len(left), skip=stage.skip)
        places = record.layout.mask[sample].nonzero()[:, 0].cpu()
        attends = ~record.layout.mask[sample].cpu()
        if record.attended is not None:
            attends &= record.attended[sample].cpu()
        attends[places[stage.kept[sample]]] = True
        distance = attends.nonzero() - places[left]  # (attending, frozen)
        reach = record.sequence if cost.window is None else cost.window - 1 if cost.causal else cost.window
        seen = (distance <= reach) & (distance > 0 if cost.causal else distance >= -reach)
        return Others(len(left), int(seen.sum()), stage.skip)

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
