"""The positions whose states ask for visual tokens, and a check of training labels.

The query of an image is the last token of the prompt that the image belongs to, whatever stands after it. The caller
may name it; otherwise labels tell where the answer begins, then the positions whose logits are requested, and without
either it is the last token of the sample that is not padding.
"""

from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.call import ModelCall
from feathervlm.engine.packing import packed_samples
from feathervlm.engine.turn_reader import TurnReader
from feathervlm.engine.turns import Turns, assemble


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
    turns = TurnReader(call, layout, present, segments).turns(given)
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


def text_follows(call: ModelCall, turns: Turns, attended: Tensor | None) -> bool:
    """Return whether text of an answer follows a prompt; the device is asked only if the call may have such text.

    Args:
        call: The call.
        turns: Its turns.
        attended: False on padding, bool (batch, sequence); None if there is no padding.
    """
    told = call.labels is not None or call.query is not None or turns.layout.query is not None
    if not told and _first_requested(call) is None and turns.row is None:
        return False
    query = turns.by_image.amax(1, keepdim=True)
    after = torch.arange(call.shape[1], device=query.device) > query
    return bool((after if attended is None else after & attended).any())


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
