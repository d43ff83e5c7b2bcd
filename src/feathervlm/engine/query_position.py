"""The positions whose states ask for visual tokens, and a check of training labels.

The query of an image is the last token of the prompt that the image belongs to, whatever stands after it. The caller
may name it; otherwise labels tell where the answer begins, then the positions whose logits are requested, and without
either it is the last token of the sample that is not padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.call import ModelCall
from feathervlm.engine.packing import block_mask, packed_samples
from feathervlm.engine.turns import Turn, Turns, assemble

ENDS_INSIDE = (
    "The prompt ends inside an image, so there is no text token to ask with; pass the whole prompt in one forward "
    "(no chunked prefill), with text after the image."
)


def find_turns(call: ModelCall, layout: VisualLayout, attended: Tensor | None) -> Turns:
    """Return the turns of a call.

    The device is asked only where rows may be packed, where labels come with several images, or for a given query.

    Args:
        call: The call.
        layout: Layout of its visual tokens.
        attended: False on padding, bool (batch, sequence); None if there is no padding.

    Raises:
        PruningError: If a given query does not fit the call.
        Unprunable: If an image has no text after it that could ask, or lies in two packed samples.
    """
    device, (batch, sequence) = layout.mask.device, call.shape
    segments = None if call.generating else packed_samples(call, attended, device)
    given = _given(call, layout)
    several = call.labels is not None and any(len(images) > 1 for images in layout.pictures)
    if given is None and segments is None and not several:
        return Turns.of_rows(layout, attended, _one_for_each_row(call, layout, attended))
    everywhere = torch.ones(batch, sequence, dtype=torch.bool, device=device)
    present = everywhere if attended is None else attended
    turns = _HostReader(call, layout, present, segments).turns(given)
    if segments is None and len({turn.row for turn in turns}) == len(turns):
        query = _last(present, torch.full((batch,), sequence - 1, device=device))
        rows = torch.tensor([turn.row for turn in turns], device=device)
        query = query.index_put((rows,), torch.tensor([turn.query for turn in turns], device=device))
        return Turns.of_rows(layout, attended, query)
    return assemble(layout, present, turns, segments)


def _one_for_each_row(call: ModelCall, layout: VisualLayout, attended: Tensor | None) -> Tensor:
    """Return the query of every row, long (batch,), without asking the device."""
    (batch, sequence), device = call.shape, layout.mask.device
    index = torch.arange(sequence, device=device)
    end = torch.full((batch,), sequence - 1, device=device)
    last = end if attended is None else _last(attended, end)
    images_end = (layout.mask * (index + 1)).amax(1)
    requested = _first_requested(call)
    if requested is not None:
        before = requested.to(device).expand(batch)
        before = before if attended is None else _last(attended, before)
        last = torch.where(before >= images_end, before, last)
    if call.labels is not None:
        labelled = (call.labels.to(device) != -100) & (index > images_end[:, None])
        last = torch.where(labelled.any(1), labelled.to(torch.uint8).argmax(1) - 1, last)
    return last


def _last(attended: Tensor, until: Tensor) -> Tensor:
    """Return the last attended position up to `until`, long (batch,); 0 where there is none."""
    index = torch.arange(attended.shape[1], device=attended.device)
    return (attended & (index <= until[:, None])).mul(index).argmax(1)


def _first_requested(call: ModelCall) -> Tensor | None:
    """Return the first position whose logits are requested, a scalar tensor; None if all are, or the last one."""
    keep, sequence = call.logits_to_keep, call.shape[1]
    if isinstance(keep, Tensor):
        if not keep.numel():
            return None
        if keep.dtype == torch.bool:
            return keep.flatten().to(torch.uint8).argmax()
        return torch.where(keep < 0, keep + sequence, keep).amin()
    return torch.tensor(max(sequence - keep, 0)) if isinstance(keep, int) and keep > 1 else None


def _given(call: ModelCall, layout: VisualLayout) -> Tensor | None:
    """Return the query that the caller names for every image, long (batch, images) on the host; None if there is none.

    Raises:
        PruningError: If it has another shape, or positions that the input does not have.
    """
    query: Any = call.query if call.query is not None else layout.query
    if query is None:
        return None
    if callable(query):
        query = query(call.arguments)
    (batch, sequence), images = call.shape, max(map(len, layout.pictures))
    try:
        position = torch.as_tensor(query).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        position = torch.empty(0)
    if position.dim() == 0:
        position = position.expand(batch)
    if position.dim() in (1, 2) and len(position) and batch % len(position) == 0:
        position = position.repeat_interleave(batch // len(position), 0)  # beams and several answers
    integers = not position.is_floating_point() and position.dtype != torch.bool
    if (
        not integers
        or position.dim() not in (1, 2)
        or len(position) != batch
        or position[0:1].numel() not in (1, images)
    ):
        raise PruningError(
            f"query={query!r} must be the position of the token that asks, a whole number or a tensor of shape "
            f"(batch,) or (batch, images), here ({batch},) or ({batch}, {images})."
        )
    position = position.view(batch, -1).expand(batch, images).long()
    position = torch.where(position < 0, position + sequence, position)
    if bool(((position < 0) | (position >= sequence)).any()):
        raise PruningError(f"query={query!r} has a position that an input of {sequence} tokens does not have.")
    return position


class _HostReader:
    """Finds turns from tensors that were copied to the host.

    Args:
        call: The call.
        layout: Layout of its visual tokens.
        attended: False on padding, bool (batch, sequence).
        segments: Number of the packed sample of every position, long (batch, sequence); None if no row is packed.
    """

    def __init__(self, call: ModelCall, layout: VisualLayout, attended: Tensor, segments: Tensor | None) -> None:
        self.layout, self.segments, self.attended = layout, segments, attended
        self.visual, self.mask, self.present = layout.positions().cpu(), layout.mask.cpu(), attended.cpu()
        self.samples = torch.zeros_like(self.present, dtype=torch.long) if segments is None else segments.cpu()
        blocks = block_mask(call) if segments is not None else None
        self.blocks = None if blocks is None else blocks.cpu().expand(call.shape[0], -1, -1)
        self.labelled = None if call.labels is None else call.labels.cpu() != -100
        keep = call.logits_to_keep
        self.requested = torch.zeros(call.shape[1], dtype=torch.bool)
        if isinstance(keep, Tensor):
            self.requested[keep.cpu()] = True
        elif isinstance(keep, int) and keep > 1:
            self.requested[-keep:] = True

    def turns(self, given: Tensor | None) -> list[Turn]:
        """Return the turns in order.

        Args:
            given: Query that the caller names for every image, long (batch, images); None if there is none.
        """
        return [turn for row in range(len(self.mask)) for turn in self._turns_of(row, given)]

    def _turns_of(self, row: int, given: Tensor | None) -> list[Turn]:
        turns: list[Turn] = []
        start = 0
        for image, picture in enumerate(self.layout.pictures[row]):
            size = sum(plane.size for plane in picture)
            places = self.visual[row, start : start + size]
            start += size
            first, end = int(places[0]), int(places[-1])
            sample = self.samples[row] == self.samples[row, end]
            if not sample[first]:
                raise Unprunable(f"Image {image} of row {row} lies in two packed samples; pack whole samples.")
            sample &= self.present[row]
            query = self._query(row, sample, end) if given is None else int(given[row, image])
            self._check(row, image, sample, end, query)
            begin = _first(sample, 0)
            assert begin is not None
            if turns and turns[-1].start == begin and turns[-1].query == query:
                turns[-1].images.append(image)
            else:
                previous = turns[-1].query if turns and turns[-1].start == begin else None
                text = begin if previous is None else self._text_start(row, previous, first)
                turns.append(Turn(row, [image], begin, text, query))
        return turns

    def _query(self, row: int, sample: Tensor, end: int) -> int:
        last = int(sample.nonzero()[-1])
        if self.labelled is not None:
            label = _first(sample & self.labelled[row], end + 2)  # a label right after the image is refused
            if label is not None:
                return int(sample[:label].nonzero()[-1])
        asked = _first(sample & self.requested, 0)
        if asked is None and self.blocks is not None:
            asked = self._shared_until(row, sample)
        return asked if asked is not None and asked > end else last

    def _shared_until(self, row: int, sample: Tensor) -> int | None:
        """Return the last position of a prompt that several answers in the row share; None if it is not shared."""
        assert self.blocks is not None
        others = (self.blocks[row] & sample)[~sample & self.present[row]]  # what tokens outside of the sample see of it
        ends = (others * torch.arange(len(sample))).amax(1)[others.any(1)]
        return int(ends.min()) if len(ends) else None

    def _text_start(self, row: int, previous: int, first: int) -> int:
        """Return where the text of a turn begins: after the answer to the turn before it."""
        labels: Sequence[int] = []
        if self.labelled is not None:
            labels = self.labelled[row, previous + 1 : first].nonzero()[:, 0].tolist()
        return previous + 2 + labels[-1] if labels else previous + 1

    def _check(self, row: int, image: int, sample: Tensor, end: int, query: int) -> None:
        if query > end and sample[query] and not self.mask[row, query]:
            return
        if query == end or self.mask[row, query]:
            raise Unprunable(ENDS_INSIDE)
        raise Unprunable(
            f"The token at position {query} cannot ask for image {image} of row {row}, which ends at position {end}; "
            "the query must be a text token of the same sample after the image."
        )


def _first(flags: Tensor, start: int) -> int | None:
    """Return the first position from `start` on that is True; None if there is none."""
    found = flags[start:].nonzero()
    return start + int(found[0]) if len(found) else None


def check_labels(call: ModelCall, layout: VisualLayout) -> None:
    """Check that no label is predicted at a visual token, whose state may be stale once it is dropped.

    Raises:
        Unprunable: If one is.
    """
    if call.labels is None:
        return
    asked = layout.mask[:, :-1] & (call.labels.to(layout.mask.device)[:, 1:] != -100)
    if asked.any():
        sample = int(asked.any(1).nonzero()[0])
        raise Unprunable(
            f"Sample {sample} has a label right after a visual token, predicted from a token that may be dropped; "
            "set the labels of visual tokens and of the token after each image to -100."
        )
