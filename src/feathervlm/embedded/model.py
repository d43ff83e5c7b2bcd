"""The trained model that ships with the package: a LLaVA of three million parameters in stock transformers classes."""

from typing import Any

import torch

from feathervlm.embedded.assets import WEIGHTS
from feathervlm.inference import loading


def load(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The embedded `LlavaForConditionalGeneration`, ready to answer, and its processor; no network is used.

    Args:
        dtype: to run in; the weights are stored in bfloat16.
    """
    with loading.quiet():
        model, _ = loading.load_model(str(WEIGHTS), dtype, "sdpa")
        return model, loading.load_processor(str(WEIGHTS))
