"""What pruning did to the last prompt: which tokens stayed, what it saved, what it took.

A report reads the device only when it is asked, so making one costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feathervlm.core.cost import flops, kv_numbers
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box, Picture, tokens_of
from feathervlm.engine.report.records import Record, StageRecord

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class StageReport:
    """One stage of a report.

    Attributes:
        layer: 0-based layer that tokens left before.
        kept: for each sample, original visual indices that stayed, long and ascending.
        scores: for each sample, float32 scores of the tokens that entered, in their order; None if nothing was
            scored. With several criteria, those of the first.
        groups: for each sample, the original visual index that each token which entered went to, long: its own if it
            stayed, -1 if it was dropped without merging. None where nothing merges.
    """

    layer: int
    kept: list[Tensor]
    scores: list[Tensor] | None
    groups: list[Tensor] | None

    @classmethod
    def of(cls, record: StageRecord) -> "StageReport":
        """From a record, on the CPU."""
        entered = record.entered.cpu()

        def of_those(values: Tensor | None) -> list[Tensor] | None:
            if values is None:
                return None
            return [row[mask] for row, mask in zip(values.cpu(), entered, strict=True)]

        kept = [row.nonzero()[:, 0] for row in record.kept.cpu()]
        return cls(record.layer, kept, of_those(record.scores), of_those(record.groups))


class Report:
    """The outcome of pruning one prompt (a batch of them).

    Args:
        method: the method's spec.
        record: of the forward, None if nothing was pruned.
        reason: why nothing was pruned, if so.
    """

    def __init__(self, method: str, record: Record | None, reason: str | None = None) -> None:
        self.method, self.reason = method, reason
        self._record = record

    @property
    def pruned(self) -> bool:
        """Whether the last prompt was pruned."""
        return self._record is not None

    @property
    def notes(self) -> list[str]:
        """What to know about this run: substituted layers, why nothing was pruned."""
        if self._record is None:
            return [self.reason] if self.reason else []
        idle = bool(self.stages) and [len(kept) for kept in self.stages[-1].kept] == list(self._record.layout.counts)
        idle = idle and all(set(run.entered) == {run.tokens} for run in self._record.encoder)
        return [*self._record.notes, *(["every visual token was kept: nothing was saved"] if idle else [])]

    @property
    def record(self) -> Record:
        """The record.

        Raises:
            PruningError: if nothing was pruned.
        """
        if self._record is None:
            raise PruningError(f"There is nothing to report: {self.reason or 'nothing was pruned'}.")
        return self._record

    @cached_property
    def stages(self) -> list[StageReport]:
        """Every stage, in order."""
        return [StageReport.of(stage) for stage in self.record.stages]

    @cached_property
    def tokens_per_layer(self) -> list[list[int]]:
        """For each sample the visual tokens that each layer saw."""
        return [
            self._per_layer(total, [len(stage.kept[sample]) for stage in self.stages])
            for sample, total in enumerate(self.record.layout.counts)
        ]

    @cached_property
    def cached_per_layer(self) -> list[list[int]]:
        """For each sample the visual tokens that each layer has cached: those it saw, unless a later stage cut them."""
        cached = [list(tokens) for tokens in self.tokens_per_layer]
        for stage, record in zip(self.stages, self.record.stages, strict=True):
            if record.cut:
                for tokens, kept in zip(cached, stage.kept, strict=True):
                    tokens[: stage.layer] = [len(kept)] * stage.layer
        return cached

    @property
    def encoder_tokens(self) -> list[list[int]]:
        """For every run of a vision encoder that merges, the tokens of a picture that entered each of its layers.

        Where pictures are packed into one run (Qwen2-VL), for every picture and every frame. [CLS] counts. Empty if
        the method leaves the encoder alone.
        """
        return [run.entered for run in self.record.encoder]

    @property
    def average_tokens(self) -> float:
        """Visual tokens per layer, averaged over layers and over the samples that have images."""
        samples = [sum(tokens) / len(tokens) for tokens in self.tokens_per_layer if tokens[0] or sum(tokens)]
        seen = [total for total in self.record.layout.counts if total]
        return sum(samples) / len(seen) if seen else 0.0

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the decoder's prefill, text included, over those of the unpruned one."""
        return self._ratio(self._flops, self.tokens_per_layer)

    @property
    def flops_ratios(self) -> list[float]:
        """The same for each sample alone, whatever it was batched with."""
        samples = range(len(self.record.layout.counts))
        return [self._ratio(self._flops, self.tokens_per_layer, [sample]) for sample in samples]

    @property
    def kv_bytes_ratio(self) -> float:
        """Bytes of keys and values after the prefill, over those of the unpruned one (padding not counted)."""
        return self._ratio(
            lambda tokens, past: kv_numbers(self.record.costs, [n + p for n, p in zip(tokens, past, strict=True)]),
            self.cached_per_layer,
        )

    @property
    def selection_seconds(self) -> float:
        """Time spent scoring and selecting, all stages."""
        return sum(stage.seconds() for stage in self.record.stages)

    def grid(self, image: int = 0, stage: int = -1, batch: int = 0, plane: int | None = None) -> Tensor:
        """Which cells of an image were kept: bool (frames, rows, cols).

        Args:
            image: number of the image in its sample.
            stage: number of the stage.
            batch: number of the sample.
            plane: which of its grids, for a model that looks at an image in several; default the finest.

        Raises:
            PruningError: if there is no such image, stage, sample or plane.
        """
        pictures = self.record.layout.pictures
        try:
            planes = pictures[batch][image]
            kept = self.stages[stage].kept[batch]
            number = range(len(planes))[finest(planes)[0] if plane is None else plane]
        except IndexError:
            where = f"image {image}" if plane is None else f"plane {plane} of image {image}"
            raise PruningError(
                f"There is no {where} at stage {stage} of sample {batch}: the batch has {len(pictures)} samples, "
                f"{len(self.stages)} stages, and {[len(sample) for sample in pictures]} images in "
                f"{[list(map(len, sample)) for sample in pictures]} planes."
            ) from None
        earlier = pictures[batch][: range(len(pictures[batch]))[image]]
        before = sum(map(tokens_of, earlier)) + sum(other.size for other in planes[:number])
        mask = torch.zeros(self.record.layout.counts[batch], dtype=torch.bool)
        mask[kept] = True
        asked = planes[number]
        cells = torch.zeros(asked.size, dtype=torch.bool)
        cells[asked.cells()] = mask[before : before + asked.size]
        return cells.view(asked.shape)

    def overlay(
        self, picture: "Image.Image", *, image: int = 0, batch: int = 0, box: Box | None = None, **options: Any
    ) -> "Image.Image":
        """The picture with kept cells bright and dropped ones dim: a panel per stage, a row per plane, finest first.

        Args:
            picture: the image that was asked about.
            image: its number in the sample.
            batch: number of the sample.
            box: (left, top, right, bottom) in pixels of the part that the model was shown; default the whole picture.
            options: see `feathervlm.engine.report.overlay.overlay`.
        """
        from feathervlm.engine.report.overlay import inside, overlay, stack

        self.grid(image, -1, batch)  # says what is wrong with the numbers
        planes = self.record.layout.pictures[batch][image]
        shown = box or (0.0, 0.0, float(picture.width), float(picture.height))
        titles = [f"layer {stage.layer}" for stage in self.stages]
        drawn = []
        for number in finest(planes):
            grids = [self.grid(image, stage, batch, number) for stage in range(len(self.stages))]
            drawn.append(overlay(picture, grids, titles, box=inside(shown, planes[number].box), **options))
        return stack(drawn)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists, ready for JSON."""
        if not self.pruned:
            return {"method": self.method, "pruned": False, "notes": self.notes}
        return {
            "method": self.method,
            "pruned": True,
            "notes": self.notes,
            "grids": [self.record.layout.shapes(sample) for sample in range(len(self.record.layout.counts))],
            "stages": [
                {
                    "layer": stage.layer,
                    "kept": [kept.tolist() for kept in stage.kept],
                    "scores": None if stage.scores is None else [scores.tolist() for scores in stage.scores],
                    "groups": None if stage.groups is None else [groups.tolist() for groups in stage.groups],
                }
                for stage in self.stages
            ],
            "encoder_tokens": self.encoder_tokens,
            "tokens_per_layer": self.tokens_per_layer,
            "cached_per_layer": self.cached_per_layer,
            "average_tokens": self.average_tokens,
            "flops_ratio": self.flops_ratio,
            "kv_bytes_ratio": self.kv_bytes_ratio,
            "selection_seconds": self.selection_seconds,
        }

    def __str__(self) -> str:
        if not self.pruned:
            return f"{self.method}: {self.reason or 'nothing was pruned yet'}"
        counts = self.record.layout.counts
        shown = [sample for sample, total in enumerate(counts) if total] or [0]
        lines = [f"{self.method}: visual tokens per layer"]
        starts = [0, *(stage.layer for stage in self.stages), len(self.record.costs)]
        for first, end in pairwise(starts):
            if end > first:
                tokens = [self.tokens_per_layer[sample][first] for sample in shown]
                lines.append(f"  layers {first:>2} to {end - 1:>2}   {_several(tokens)}")
        encoder = [
            f"  vision encoder   {sum(run.entered) / len(run.entered):.1f} of {run.tokens} tokens per layer"
            for run in self.record.encoder
        ]
        lines += dict.fromkeys(encoder)  # a video has many frames of a kind
        lines += [
            f"  average          {self.average_tokens:.1f} of {_several([counts[sample] for sample in shown])}",
            f"  prefill FLOPs    {self.flops_ratio:.1%} of unpruned (decoder, text included)",
            f"  KV cache         {self.kv_bytes_ratio:.1%} of unpruned",
            f"  selection        {1000 * self.selection_seconds:.2f} ms",
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _per_layer(self, total: int, kept: list[int]) -> list[int]:
        tokens, starts = total, dict(zip((stage.layer for stage in self.record.stages), kept, strict=True))
        result = []
        for layer in range(len(self.record.costs)):
            tokens = starts.get(layer, tokens)
            result.append(tokens)
        return result

    def _flops(self, tokens: list[int], past: list[int]) -> float:
        return flops(self.record.costs, tokens, past)

    def _ratio(self, cost: Any, visual_per_layer: list[list[int]], samples: Sequence[int] | None = None) -> float:
        record = self.record
        attended = record.attended
        lengths = attended.sum(1).tolist() if attended is not None else [record.sequence] * len(record.layout.counts)
        pruned = unpruned = 0
        for sample in range(len(lengths)) if samples is None else samples:
            length, total = lengths[sample], record.layout.counts[sample]
            tokens = [length - total + visual for visual in visual_per_layer[sample]]
            pruned += cost(tokens, self._pasts(sample))
            unpruned += cost([length] * len(tokens), [record.past] * len(tokens))
        return pruned / unpruned

    def _pasts(self, sample: int) -> list[int]:
        """Cached tokens of earlier turns that each layer holds."""
        held = [
            0 if stage.past is None else stage.past[0] - _fillers(stage.past, sample) for stage in self.record.stages
        ]
        before = self.record.before
        return self._per_layer(self.record.past if before is None else before[0] - _fillers(before, sample), held)


def finest(planes: Picture) -> list[int]:
    """Numbers of the planes, the one with the most tokens first."""
    return sorted(range(len(planes)), key=lambda number: -planes[number].size)


def _fillers(past: tuple[int, Tensor | None], sample: int) -> int:
    slots, valid = past
    return 0 if valid is None else int((~valid[sample, :slots]).sum())


def _several(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
