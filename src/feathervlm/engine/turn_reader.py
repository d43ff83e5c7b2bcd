"""Finding turns on the host: where rows are packed, labels come with several images, or a query is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.call import ModelCall
from feathervlm.engine.packing import block_mask
from feathervlm.engine.turns import Turn

ENDS_INSIDE = (
    "The prompt ends inside an image, so there is no text token to ask with; pass the whole prompt in one forward "
    "(no chunked prefill), with text after the image."
)


class TurnReader:
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
