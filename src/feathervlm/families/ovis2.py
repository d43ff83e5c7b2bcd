"""Ovis 2: the overview first, then tiles with marks between columns and rows.

The marks have ids of their own in the config and embeddings from the vision side; they show no part of the picture.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun
from feathervlm.families.tiles import joined, prompts


class Ovis2(Placeholders):
    """`Ovis2ForConditionalGeneration`."""

    title = "Ovis 2"
    model_types = ("ovis2",)
    geometry = "an overview and equal tiles, joined to one plane"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return overview and tiles of every image, from the marks in the prompt."""
        begin, _, col, row, end = self.model.config.visual_indicator_token_ids
        runs = []
        for ids in prompts(call, visual):
            for start in (i for i, word in enumerate(ids) if word == begin):
                marks = ids[start : ids.index(end, start)]
                rows, tiles = marks.count(row) + 1, marks.count(row) + marks.count(col) + 1
                side = isqrt(marks.count(self.token("image")) // (tiles + 1 if tiles > 1 else 1))
                runs.append(joined(side, rows if tiles > 1 else 0, tiles // rows, overview_first=True))
        return runs

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, merged."""
        return merge_square(output.last_hidden_state, runs[0].picture[0].shape[1])
