"""LLaVA 1.5 in vLLM: one square grid per picture, and one position per token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from feathervlm.integrations.vllm.architectures import ARCHITECTURES
from feathervlm.integrations.vllm.encoder import TowerRecorder
from feathervlm.integrations.vllm.model import EncodedImages, Grid, PruningModel
from feathervlm.integrations.vllm.processing import FamilyGeometry, PruningInfo, PruningProcessor
from feathervlm.serving.check import encoder_depth
from feathervlm.serving.plan import ServingPlan


class LlavaGeometry(FamilyGeometry):
    """One square grid per picture."""

    placeholder = "image_token_index"

    @classmethod
    def grid(cls, config: Any, item: Any) -> Grid:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return 1, side, side

    @classmethod
    def encoder_layers(cls, config: Any) -> int | None:
        return ARCHITECTURES["llava"].encoder_layers(config)


def with_inner_name(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights with the name of the vision model inside the tower, which vLLM 0.32 expects.

    transformers writes it up to 5.22 and leaves it out from 5.23 on.
    """
    for name, weight in weights:
        head, tower, tail = name.partition("vision_tower.")
        inside = not tower or tail.startswith("vision_model.")
        yield (name if inside else f"{head}{tower}vision_model.{tail}"), weight


class PruningLlavaInfo(LlavaGeometry, PruningInfo, LlavaProcessingInfo):
    """Processing info of LLaVA."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the number of tokens of an unpruned picture, which a request may ask for."""
        return {"image": self.get_max_image_tokens()}


class PruningLlavaProcessor(LlavaGeometry, PruningProcessor, LlavaMultiModalProcessor):
    """Processor of LLaVA."""


@MULTIMODAL_REGISTRY.register_processor(
    PruningLlavaProcessor, info=PruningLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class FeathervlmLlava(LlavaGeometry, PruningModel, LlavaForConditionalGeneration, SupportsMRoPE):
    """`LlavaForConditionalGeneration` that prunes."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)
        self._recorder = TowerRecorder(self.vision_tower, self.multi_modal_projector)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint of any version of transformers."""
        return super().load_weights(with_inner_name(weights))  # type: ignore[no-any-return]

    def grids(self, arguments: dict[str, Any]) -> list[Grid]:
        pixels = arguments.get("pixel_values")
        return [] if pixels is None else [self.grid(self.config, None)] * len(pixels)

    @contextmanager
    def looking(self, plans: Sequence[ServingPlan], grids: Sequence[Grid]) -> Iterator[EncodedImages]:
        encoded = EncodedImages()
        signals = [signal for plan in dict.fromkeys(plans) for signal in plan.schedule.signals()]
        with self._recorder.recording(signals, encoder_depth(self.config)):
            yield encoded
        if plans and self._recorder.vision is not None:
            encoded.vision = list(self._recorder.vision)
            # The [CLS] token is not a visual token.
            start = int(self.config.vision_feature_select_strategy == "default")
            inside = self._recorder.inside
            encoded.inside = [{signal: inside[signal][row, start:] for signal in inside} for row in range(len(grids))]

    def full_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return torch.arange(len(tokens)).expand(3, -1), 0
