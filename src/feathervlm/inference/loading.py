"""From what a user types to a model, its processor and inputs; whatever does not fit is refused in one sentence.

Knows transformers' auto classes; knows no method, and nothing of the terminal.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from feathervlm.core.errors import PruningError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


EXAMPLE_ID = "llava-hf/llava-1.5-7b-hf"


DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the hub client from writing logs and progress bars; what matters we say ourselves."""
    library, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    levels, bars = (library.get_verbosity(), hub.level), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if bars:
            library.enable_progress_bar()


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the accelerator if there is one.

    Raises:
        PruningError: if there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    present = ["cpu"]
    if accelerator is not None:
        present += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in present:
        raise PruningError(f"There is no device {name!r} here; choose auto or one of {', '.join(present)}.")
    return torch.device(name)


def choose_dtype(name: str) -> torch.dtype | str:
    """The torch type of that name, or `auto`, the type that the weights are stored in.

    Raises:
        PruningError: if it is none that models run in.
    """
    if name not in DTYPES:
        raise PruningError(f"There is no dtype {name!r}; choose one of {', '.join(DTYPES)}.")
    return name if name == "auto" else getattr(torch, name)


def load_config(name: str) -> PreTrainedConfig:
    """The config of a vision-language model, from a directory or the hub.

    Raises:
        PruningError: if there is none, or the model takes no images.
    """
    local = bool(name) and Path(name).is_dir()
    if not local and not HUB_ID.fullmatch(name):
        raise PruningError(f"There is no model directory {name!r}; give one, or a hub id such as {EXAMPLE_ID}.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if local:
            raise PruningError(f"{name!r} holds no model ({brief(error)}); give a directory that does.") from error
        raise PruningError(
            f"{name!r} is no directory here and did not come from the hub ({brief(error)}); check the name and the "
            "network."
        ) from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise PruningError(f"{name!r} is a {config.model_type}, which takes no images; give a vision-language model.")
    return config


def empty_model(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """The model without weights, to ask whether it can be had and pruned before gigabytes are read.

    Raises:
        PruningError: if it does not work with that attention.
    """
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise PruningError(f"Attention {attention!r} does not work here ({brief(error)}); choose sdpa.") from error


def load_processor(name: str) -> Any:
    """The processor of a model.

    Raises:
        PruningError: if it cannot be loaded or takes no images.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise PruningError(
            f"The processor of {name!r} cannot be loaded ({brief(error)}); put its files beside the model's."
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise PruningError(f"{name!r} has no image processor; put the files of the model's own beside it.")
    return processor


def load_model(name: str, dtype: torch.dtype | str, attention: str) -> tuple[Any, list[str]]:
    """The model, and the names of weights that the checkpoint lacks.

    Raises:
        PruningError: if the weights cannot be read.
    """
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, attn_implementation=attention, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise PruningError(f"The weights of {name!r} cannot be loaded ({brief(error)}); get them again.") from error
    model, info = loaded
    return model.eval(), sorted(info["missing_keys"])


def brief(error: BaseException) -> str:
    """The first sentence of an error, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[.!?])\s", text)[0].rstrip(".")
