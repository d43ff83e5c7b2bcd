"""The one sequence that loads a model: config, a model without weights, processor, weights, device.

`check` refuses what cannot work before weights are read; the `CheckedModel` that it returns loads the weights.
"""

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from feathervlm.api import prune
from feathervlm.core.boxes import BoxFormat
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule
from feathervlm.embedded.questions import BOXES
from feathervlm.engine.decoder import DecoderView
from feathervlm.families import family_of
from feathervlm.inference.model_spec import UNPRUNED, ModelSettings, ModelSpec, is_embedded
from feathervlm.methods import Method
from feathervlm.utils.devices import choose_device, choose_dtype
from feathervlm.utils.files import brief
from feathervlm.utils.provenance import versions
from feathervlm.utils.quiet import quiet
from feathervlm.utils.weights import check_types, check_weights

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
EXAMPLE_ID = "llava-hf/llava-1.5-7b-hf"
DAMAGE = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, StrictDataclassError)
"""What transformers runs into in the damaged files of a model."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to answer.

    Attributes:
        model: The model on its device, in evaluation mode.
        processor: Its processor.
        settings: Device, dtype, maximum answer length and batch size.
        embedded: Whether it is the embedded model, or one of another training run of it.
    """

    model: Any
    processor: Any
    settings: ModelSettings
    embedded: bool

    @classmethod
    def of(cls, model: Any, processor: Any) -> Self:
        """Wrap a model that the caller has loaded, with the default settings."""
        embedded = is_embedded(processor)
        return cls(model, processor, ModelSpec().resolve(embedded), embedded)

    @property
    def boxes(self) -> BoxFormat | None:
        """The format in which the model writes boxes; None if it is not known.

        An embedded model is a LLaVA by its classes, but writes boxes in its own format.
        """
        return BOXES if self.embedded else family_of(self.model).boxes


@dataclass(frozen=True, eq=False)
class CheckedModel(LoadedModel):
    """A model without weights, whose config, processor and methods were checked.

    Attributes:
        spec: Which model it is.
        device: The torch device to run on.
        dtype: The torch type to load, or "auto".
    """

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype | str

    def load(self) -> LoadedModel:
        """Read the weights, see `load_model`."""
        model = load_model(self.spec.path, self.dtype, self.spec.attention, name=self.spec.model)
        return LoadedModel(model.to(self.device), self.processor, self.settings, self.embedded)


def check(
    spec: ModelSpec, methods: Iterable[str | Method | Schedule | None] = (), *, strict: bool = True
) -> CheckedModel:
    """Load everything but the weights, and try the methods on the model without weights.

    Args:
        spec: Which model to load.
        methods: Methods that are to prune it; None and `UNPRUNED` prune nothing.
        strict: Refuse a model that cannot be pruned, as `prune` does.

    Raises:
        PruningError: There is no such model, device or dtype, or a method does not fit the model.
    """
    choose_device(spec.device), choose_dtype(spec.dtype)
    with quiet():
        model = empty_model(load_config(spec.path), spec.attention)
        for method in methods:
            if method is not None and method != UNPRUNED:
                prune(model, method, strict=strict).remove()
        processor = load_processor(spec.path)
    embedded = is_embedded(processor)
    settings = spec.resolve(embedded)
    device, dtype = choose_device(settings.device), choose_dtype(settings.dtype)
    return CheckedModel(model, processor, settings, embedded, spec, device, dtype)


def load(spec: ModelSpec) -> LoadedModel:
    """Load a model, see `check` and `load_model`."""
    return check(spec).load()


def describe(checked: CheckedModel) -> dict[str, Any]:
    """Return what the answers of a model depend on, as plain values.

    Raises:
        PruningError: The files of the model cannot be identified.
    """
    config, settings, spec = checked.model.config, checked.settings, checked.spec
    # A config may not name the stored type; transformers then reads it from the weights.
    dtype = (config.dtype or "as stored") if checked.dtype == "auto" else checked.dtype
    return {
        "name": spec.model,
        "fingerprint": spec.fingerprint(),
        "model_type": config.model_type,
        "embedded": checked.embedded,
        "depth": len(DecoderView(checked.model).layers),
        "device": str(checked.device),
        "dtype": str(dtype).removeprefix("torch."),
        "attention": spec.attention,
        "max_new_tokens": settings.max_new_tokens,
        "batch": settings.batch,
        "versions": versions(),
    }


def load_config(name: str) -> PreTrainedConfig:
    """Load the config of a vision-language model from a directory or the hub.

    Raises:
        PruningError: There is no such model, or it takes no images.
    """
    local = bool(name) and os.path.isdir(name)
    if not local and not HUB_ID.fullmatch(name):
        raise PruningError(f"There is no model directory {name!r}; give one, or a hub id such as {EXAMPLE_ID}.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except DAMAGE as error:
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
    """Build the model without weights, to check what can be done with it before gigabytes are read.

    Raises:
        PruningError: The model does not work with that attention implementation.
    """
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise PruningError(f"Attention {attention!r} does not work here ({brief(error)}); choose sdpa.") from error


def load_processor(name: str) -> Any:
    """Load the processor of a model.

    Raises:
        PruningError: The processor cannot be loaded or takes no images.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except (*DAMAGE, ImportError) as error:
        raise PruningError(
            f"The processor of {name!r} cannot be loaded ({brief(error)}); put its files beside the model's."
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise PruningError(f"{name!r} has no image processor; put the files of the model's own beside it.")
    return processor


def load_model(path: str, dtype: torch.dtype | str, attention: str, *, name: str | None = None) -> Any:
    """Load a model with its weights, and warn if the checkpoint lacks some of them.

    Args:
        path: Directory of the model, or its id on the hub.
        dtype: Torch type to load, or "auto".
        attention: Name of an attention implementation of transformers.
        name: Name of the model in the warning. The default is its path.

    Raises:
        PruningError: The weights cannot be read, are integers, or are not finite.
    """
    try:
        check_types(Path(path))
        with quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are refused below, in words
            )
    except PruningError:
        raise
    except (*DAMAGE, SafetensorError) as error:
        raise PruningError(f"The weights of {path!r} cannot be loaded ({brief(error)}); get them again.") from error
    model, info = loaded
    for key, stored, expected in sorted(info["mismatched_keys"])[:1]:
        raise PruningError(
            f"{key} in {path!r} has the shape {tuple(stored)}, and {tuple(expected)} by its config.json; give files of "
            "one model."
        )
    if missing := sorted(info["missing_keys"]):
        warnings.warn(
            f"feathervlm found no weights for {len(missing)} tensors of {name or path}, such as {missing[0]}; "
            "they are random and the answers are noise.",
            stacklevel=3,
        )
    check_weights(model.named_parameters(), name or path)
    return model.eval()
