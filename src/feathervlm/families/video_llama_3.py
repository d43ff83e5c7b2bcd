"""VideoLLaMA 3: pictures and frames at their own shape, each with a merge factor of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_groups
from feathervlm.families.runs import PlaceholderRun, grid


class VideoLlama3(Placeholders):
    """`VideoLlama3ForConditionalGeneration`. Frames that its processor drops as repetitions are refused."""

    title = "VideoLLaMA 3"
    model_types = ("video_llama_3",)
    modalities = ("image", "video")
    geometry = "one grid of the picture's own shape, merged by a factor per image"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per image, and one with several frames per video."""
        grids = visual.given[f"{visual.modality}_grid_thw"].tolist()
        merges = visual.given[f"{visual.modality}_merge_sizes"].tolist()
        return [
            grid(rows // merge, cols // merge, frames)
            for (frames, rows, cols), merge in zip(grids, merges, strict=True)
        ]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the output of the encoder, which it has merged itself."""
        return merge_groups(output.last_hidden_state, sum(run.length for run in runs))
