"""Granite Docling: tiles marked with their row and column, then an overview, with features added in early layers.

A page of one tile has no overview. The fine route of the connector makes four tokens of one, which shows in the length
of the runs of placeholders. Features of middle layers of the encoder are added after the first decoder layers.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun
from feathervlm.families.tiles import Span, arrangements, joined, prompts, sketch, spans_of


class GraniteDocling(Placeholders):
    """`GraniteDoclingForConditionalGeneration`."""

    title = "Granite Docling"
    model_types = ("granite_docling",)
    decoder = "full attention; features added after the first layers"
    geometry = "equal tiles, joined to one plane, and an overview if they are several"

    @property
    def injected(self) -> int:
        """The last layer after which features are added."""
        return len(self.model.config.vision_config.deepstack_visual_indexes) - 1

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return a sketch of every tile that is not padding of the batch."""
        return sketch(arguments["pixel_values"][arguments["pixel_attention_mask"].bool()])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        tiles = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        spans = [spans_of(ids, self.token("image")) for ids in prompts(call, visual)]
        counts = [n for ids, own in zip(prompts(call, visual), spans, strict=True) for n in pages(ids, own)]
        side = isqrt(max((length for own in spans for _, length in own), default=0))
        return [joined(side, *shape) for shape in arrangements(tiles.split(counts))]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, merged."""
        return merge_square(output.last_hidden_state, runs[0].picture[-1].shape[1])


def pages(ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Return the number of spans of every page of a prompt, which begins with the mark of the first row and column."""
    if not spans:
        return []
    begins = [number for number, (start, _) in enumerate(spans) if ids[start - 1] == ids[spans[0][0] - 1]]
    return [end - begin for begin, end in zip(begins, [*begins[1:], len(spans)], strict=True)]
