"""Llama 4: tiles with marks between columns and rows, then the overview after a mark of its own.

Three of four decoder layers see chunks of the sequence only; a criterion reads the nearest layer of full attention,
which has no rotary positions, so its scores with and without RoPE are the same.
Its image processor needs torchvision, so the tests prepare pictures by hand, as its code does.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.runs import PlaceholderRun
from feathervlm.families.tiles import Span, joined, prompts, spans_of, up_to_overview


class Llama4(Placeholders):
    """`Llama4ForConditionalGeneration`."""

    title = "Llama 4"
    model_types = ("llama4",)
    text_types = ("llama4_text",)
    geometry = "equal tiles, joined to one plane, and an overview"
    decoder = "chunks, every fourth layer full"
    caches = ("dynamic",)
    limits = "prompts below 8192 tokens; the margin that fills up the tiles counts as picture"

    def layout(self, call: ModelCall) -> VisualLayout:
        """Return the layout, and refuse prompts so long that queries are scaled by their position."""
        config = self.model.config.get_text_config()
        if config.attn_temperature_tuning and call.shape[1] >= config.floor_scale:
            raise Unprunable(
                f"Llama 4 scales queries from token {config.floor_scale} on by their position, which pruning changes; "
                "shorten the prompt."
            )
        return super().layout(call)

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return tiles and overview of every image, from the marks between the tiles."""
        runs = []
        for ids in prompts(call, visual):
            spans = spans_of(ids, self.token("image"))
            for count in up_to_overview(ids, spans):
                runs.append(_run(ids, spans[:count]))
                spans = spans[count:]
        return runs

    def normalize_after_rotary(self, layer: int, name: str, states: Tensor, rotated: bool) -> Tensor:
        """Apply the norm that follows the rotation in models that have one."""
        norm = getattr(self.decoder_view.attention_module(layer), "qk_norm", None)
        return norm(states) if rotated and norm is not None else states

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the output of the encoder, which its adapter has merged."""
        states: Tensor = output.last_hidden_state
        return states.flatten(0, -2)


def _run(ids: Sequence[int], spans: Sequence[Span]) -> PlaceholderRun:
    *tiles, (_, length) = spans
    side = isqrt(length)
    marks = [ids[start + size] for start, size in tiles]
    rows = marks.count(marks[-1]) if tiles else 0
    return joined(side, rows, len(tiles) // max(rows, 1))
