"""What pruning did to the last prompt: which tokens were kept, what it saved, and how long it took.

A report reads the device only when it is asked, so making one costs nothing.
"""

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feathervlm.core.errors import PlacementWarning, PruningError
from feathervlm.core.layout import Box, Picture, VisualLayout, tokens_of
from feathervlm.engine.report.costs import Costs
from feathervlm.engine.report.records import Record, whole_picture
from feathervlm.engine.report.stage import StageReport
from feathervlm.engine.report.text import as_html, as_text, table, totals

if TYPE_CHECKING:
    from PIL import Image


class Report:
    """The outcome of pruning one batch of prompts.

    Args:
        method: Spec of the method.
        record: Record of the forward; None if nothing was pruned.
        reason: Reason why nothing was pruned, if so.
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
        """What to know about this run: substituted layers, why nothing was pruned or saved."""
        if self._record is None:
            return [self.reason] if self.reason else []
        idle = bool(self.stages) and [len(kept) for kept in self.stages[-1].kept] == list(self.layout.counts)
        idle = idle and all(set(run.entered) == {run.tokens} for run in self._record.encoder)
        return [*self._record.notes, *(["every visual token was kept: nothing was saved"] if idle else [])]

    @property
    def record(self) -> Record:
        """The record of the forward.

        Raises:
            PruningError: If nothing was pruned.
        """
        if self._record is None:
            raise PruningError(f"There is nothing to report: {self.reason or 'nothing was pruned'}.")
        return self._record

    @property
    def layout(self) -> VisualLayout:
        """Where the visual tokens of the prompts are, and which cell of which picture each of them shows.

        Raises:
            PruningError: If nothing was pruned.
        """
        return self.record.layout

    @property
    def row_mask(self) -> Tensor:
        """Which tokens have states of all layers: neither padding nor dropped, bool (batch, sequence).

        It replaces the attention mask for whoever reads hidden states: a mean over tokens, the vectors of a retrieval
        model, a classifier of tokens. The states of dropped tokens are zero. Padding is that of an `attention_mask` of
        shape (batch, sequence). The mask is on the device of the inputs.

        Raises:
            PruningError: If nothing was pruned.
        """
        stays = ~self.record.dropped()
        return stays if self.record.attended is None else stays & self.record.attended

    @cached_property
    def queries(self) -> list[list[int]]:
        """The position of the token that asked for each image, sample by sample.

        Raises:
            PruningError: If nothing was pruned.
        """
        rows = zip(self.record.query.tolist(), self.layout.pictures, strict=True)
        return [row[: len(images)] for row, images in rows]

    @cached_property
    def stages(self) -> list[StageReport]:
        """Every stage, in order."""
        return [StageReport.of(stage) for stage in self.record.stages]

    @cached_property
    def costs(self) -> Costs:
        """The tokens, FLOPs and cached numbers that the other properties summarize."""
        return Costs(self.record)

    @property
    def tokens_per_layer(self) -> list[list[int]]:
        """For each sample, the visual tokens that each layer saw."""
        return self.costs.tokens

    @property
    def cached_per_layer(self) -> list[list[int]]:
        """For each sample, the visual tokens that each layer has cached after later stages have cut what it saw."""
        return self.costs.cached()

    @property
    def encoder_tokens(self) -> list[list[int]]:
        """For every run of a vision encoder that merges, the tokens of a picture that entered each of its layers.

        Where pictures are packed into one run (Qwen2-VL), there is one entry for every picture and every frame. [CLS]
        counts. The list is empty if the method does not change the encoder.
        """
        return [run.entered for run in self.record.encoder]

    @property
    def average_tokens(self) -> float:
        """Visual tokens per layer, averaged over layers and over the samples that have images."""
        return self.costs.average_tokens()

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the decoder's prefill, text and scoring passes included, over those of the unpruned one."""
        return self.costs.flops_ratio()

    @property
    def flops_ratios(self) -> list[float]:
        """The ratio of FLOPs of each sample alone, independent of its batch."""
        return [self.costs.flops_ratio([sample]) for sample in range(len(self.layout.counts))]

    @property
    def kv_bytes_ratio(self) -> float:
        """Bytes of keys and values after the prefill over those of the unpruned one, without padding."""
        return self.costs.kv_ratio()

    @property
    def selection_seconds(self) -> float:
        """Seconds of scoring and selecting, summed over the stages."""
        return self.costs.selection_seconds()

    def grid(self, image: int = 0, stage: int = -1, batch: int = 0, plane: int | None = None) -> Tensor:
        """Return which cells of an image were kept, bool (frames, rows, cols).

        Args:
            image: Number of the image in its sample.
            stage: Number of the stage.
            batch: Number of the sample.
            plane: Number of the grid, for a model that sees an image in several; default the finest.

        Raises:
            PruningError: If there is no such image, stage, sample or plane.
        """
        pictures = self.layout.pictures
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
        previous = pictures[batch][: range(len(pictures[batch]))[image]]
        start = sum(map(tokens_of, previous)) + sum(other.size for other in planes[:number])
        mask = torch.zeros(self.layout.counts[batch], dtype=torch.bool)
        mask[kept] = True
        selected = planes[number]
        cells = torch.zeros(selected.size, dtype=torch.bool)
        cells[selected.cells()] = mask[start : start + selected.size]
        return cells.view(selected.shape)

    def overlay(
        self,
        picture: "Image.Image | Path | str",
        *,
        processor: Any = None,
        image: int = 0,
        batch: int = 0,
        box: Box | None = None,
        **options: Any,
    ) -> "Image.Image":
        """Draw the picture with kept cells bright and dropped ones dim: a panel per stage, a row per plane.

        Some processors crop the center of a picture, or pad it to a square, so the processor has to be known to paint
        the right cells. A `PlacementWarning` is issued if that matters and neither `processor` nor `box` is given.

        Args:
            picture: The image of the prompt, or its file; it is turned upright by its EXIF orientation.
            processor: The processor that prepared the prompt.
            image: Number of the image in the sample.
            batch: Number of the sample.
            box: (left, top, right, bottom) in pixels of the part that the model was shown; replaces what the
                processor says.
            options: Options of `feathervlm.engine.report.overlay.overlay`.
        """
        from feathervlm.engine.report.overlay import inside, overlay, stack
        from feathervlm.utils.pictures import as_rgb

        picture = as_rgb(picture)  # upright, as the model was shown it
        self.grid(image, -1, batch)  # raises an error that explains wrong numbers
        planes = self.layout.pictures[batch][image]
        shown = self._shown(picture.size, processor) if box is None else box
        titles = [f"layer {stage.layer}" for stage in self.stages]
        rows = []
        for number in finest(planes):
            grids = [self.grid(image, stage, batch, number) for stage in range(len(self.stages))]
            rows.append(overlay(picture, grids, titles, box=inside(shown, planes[number].box), **options))
        return stack(rows)

    def _shown(self, size: tuple[int, int], processor: Any) -> Box:
        if processor is not None:
            return self.record.shown(processor, size)
        if self.record.crops and size[0] != size[1]:
            warnings.warn(
                f"The processors of this model can crop or pad a picture of {size[0]} x {size[1]} pixels, so the "
                "overlay may paint the wrong part of it; pass processor=processor to report.overlay().",
                PlacementWarning,
                stacklevel=3,
            )
        return whole_picture(processor, size)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and lists, ready for JSON."""
        if not self.pruned:
            return {"method": self.method, "pruned": False, "notes": self.notes}
        return {
            "method": self.method,
            "pruned": True,
            "notes": self.notes,
            "grids": [self.layout.shapes(sample) for sample in range(len(self.layout.counts))],
            "stages": [stage.to_dict() for stage in self.stages],
            "encoder_tokens": self.encoder_tokens,
            "tokens_per_layer": self.tokens_per_layer,
            "cached_per_layer": self.cached_per_layer,
            "average_tokens": self.average_tokens,
            "flops_ratio": self.flops_ratio,
            "kv_bytes_ratio": self.kv_bytes_ratio,
            "selection_seconds": self.selection_seconds,
        }

    def __repr__(self) -> str:
        if not self.pruned:
            return f"Report({self})"
        return (
            f"Report({self.method}: {self.average_tokens:.1f} of {totals(self.record)} visual tokens per layer, "
            f"{self.flops_ratio:.1%} of the prefill's FLOPs)"
        )

    def __str__(self) -> str:
        if not self.pruned:
            return f"{self.method}: {self.reason or 'nothing was pruned yet'}"
        return as_text(self.method, table(self.record, self.costs), self.notes)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        rows, notes = (table(self.record, self.costs), self.notes) if self.pruned else ([], self.notes)
        return as_html(self.method, rows, notes)


def finest(planes: Picture) -> list[int]:
    """Return the numbers of the planes, the one with the most tokens first."""
    return sorted(range(len(planes)), key=lambda number: -planes[number].size)
