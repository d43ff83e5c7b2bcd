"""Qwen2.5-VL in vLLM: a grid per picture that depends on its size, and positions of time, row and column.

Only images are pruned. The vision encoder orders patches by windows until after its merger.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from feathervlm.core.layout import picture_of, tokens_of
from feathervlm.families.patch_merging import merge_groups
from feathervlm.integrations.vllm.encoder import TowerRecorder
from feathervlm.integrations.vllm.model import EncodedImages, Grid, PruningModel
from feathervlm.integrations.vllm.processing import FamilyGeometry, PruningInfo, PruningProcessor
from feathervlm.serving.check import encoder_depth
from feathervlm.serving.plan import ServingPlan
from feathervlm.serving.positions import grid_cells, grid_positions


class Qwen25VLGeometry(FamilyGeometry):
    """The grid that the processor names, after the merger."""

    placeholder = "image_token_id"
    axes = 3

    @classmethod
    def grid(cls, config: Any, item: Any) -> Grid:
        return cls.merged_grid(config, item["image_grid_thw"].data.tolist())

    @classmethod
    def merged_grid(cls, config: Any, grid: Sequence[int]) -> Grid:
        """Return (frames, rows, cols) in tokens for the same in patches."""
        frames, rows, cols = map(int, grid)
        merge = config.vision_config.spatial_merge_size
        return frames, rows // merge, cols // merge

    @classmethod
    def encoder_layers(cls, config: Any) -> int | None:
        return encoder_depth(config)

    @classmethod
    def images(cls, processed: Any) -> int:
        return len(processed.get("image_grid_thw", ()))


class PruningQwen25VLInfo(Qwen25VLGeometry, PruningInfo, Qwen2_5_VLProcessingInfo):
    """Processing info of Qwen2.5-VL."""


class PruningQwen25VLProcessor(Qwen25VLGeometry, PruningProcessor, Qwen2_5_VLMultiModalProcessor):
    """Processor of Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen25VLProcessor, info=PruningQwen25VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class FeathervlmQwen25VL(Qwen25VLGeometry, PruningModel, Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` that prunes."""

    supports_multimodal_pruning = False  # vLLM's own pruning of videos is another mechanism

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)
        # vLLM calls the merger without its hooks, for it may be compiled; its first part is called with them.
        self._recorder = TowerRecorder(self.visual, self.visual.merger.ln_q)

    def grids(self, arguments: dict[str, Any]) -> list[Grid]:
        return [self.merged_grid(self.config, grid) for grid in self._patches(arguments)]

    def _patches(self, arguments: dict[str, Any]) -> list[list[int]]:
        grids = arguments.get("image_grid_thw")
        return [] if grids is None else [[int(side) for side in grid] for grid in grids]

    def prompt_positions(self, before: int, grid: Grid, after: int) -> Tensor | None:
        return grid_positions(before, grid, after)

    def cells(self, grid: Grid) -> Tensor:
        return grid_cells(grid)

    @contextmanager
    def looking(self, plans: Sequence[ServingPlan], grids: Sequence[Grid]) -> Iterator[EncodedImages]:
        encoded = EncodedImages()
        signals = [signal for plan in dict.fromkeys(plans) for signal in plan.schedule.signals()]
        with self._recorder.recording(signals, encoder_depth(self.config)):
            yield encoded
        if not plans or self._recorder.vision is None:
            return
        encoded.vision = self._by_picture(self._recorder.vision.flatten(0, -2), grids)
        inside = {
            signal: self._by_picture(values.flatten(0, 1).view(values.shape[1], -1), grids)
            for signal, values in self._recorder.inside.items()
        }
        encoded.inside = [
            {signal: parts[row] if signal.has_vectors else parts[row][:, 0] for signal, parts in inside.items()}
            for row in range(len(grids))
        ]

    def _by_picture(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Return the mean over the patches of every token, (tokens, dim) for every picture in raster order.

        Args:
            patches: Values of all patches as the encoder orders them, (patches, dim).
            grids: (frames, rows, cols) of every picture.
        """
        vision, sizes = self.config.vision_config, [tokens_of(picture_of(grid)) for grid in grids]
        merge = vision.spatial_merge_size
        order, _ = get_vision_window_index(
            torch.tensor([[frames, rows * merge, cols * merge] for frames, rows, cols in grids]),
            spatial_merge_size=merge,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        tokens = merge_groups(patches, sum(sizes))
        return list(tokens[torch.argsort(order).to(tokens.device)].split(sizes))
