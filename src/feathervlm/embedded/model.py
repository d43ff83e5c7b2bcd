"""The trained model that ships with the package: a LLaVA of three million parameters in stock transformers classes."""

from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from feathervlm.embedded.assets import WEIGHTS
from feathervlm.utils.quiet import quiet


def load(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load the embedded `LlavaForConditionalGeneration`, ready to answer, and its processor; no network is used.

    Args:
        dtype: Torch type to run in; the weights are stored in bfloat16.
    """
    with quiet():
        model = LlavaForConditionalGeneration.from_pretrained(str(WEIGHTS), dtype=dtype, attn_implementation="sdpa")
        return model.eval(), AutoProcessor.from_pretrained(str(WEIGHTS))
