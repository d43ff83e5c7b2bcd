"""Whether a model can be served with a method, checked by its config alone."""

import copy
from typing import Any

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.inference.loading import empty_model
from feathervlm.serving.plan import ServingPlan, plan_of

SCORING_TEXT_TYPES = ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text")
"""Text models whose decoder layers a scoring pass can run: `config.model_type`."""


def check_plan(spec: str, config: Any, encoder_layers: int | None = None) -> ServingPlan:
    """Return the plan of a method for a model.

    Args:
        spec: The method.
        config: Config of the model, as transformers reads it.
        encoder_layers: Number of layers of the vision encoder that the serving engine runs; None if it does not give
            what happens inside them.

    Raises:
        PruningError: If the model cannot be served with this method.
    """
    text = config.get_text_config()
    plan = plan_of(spec, text.num_hidden_layers)
    prune(empty_model(copy.deepcopy(config), "sdpa"), plan.method).remove()
    inside = [signal for signal in plan.schedule.signals() if signal.in_encoder]
    if inside and encoder_layers is None:
        raise PruningError(
            f"{plan.method} reads {inside[0].describe()}, which is not known where a {config.model_type} is served; "
            "choose a method that does not."
        )
    for signal in inside:
        layer = signal.encoder_layer(encoder_depth(config))
        if layer is not None and encoder_layers is not None and layer >= encoder_layers:
            raise PruningError(
                f"{plan.method} reads layer {layer} of the vision encoder, and only layers 0 to {encoder_layers - 1} "
                "run where it is served; choose one of these by encoder_layer."
            )
    if plan.scores and (text.model_type not in SCORING_TEXT_TYPES or _slides(text)):
        window = " with a sliding window" if _slides(text) else ""
        raise PruningError(
            f"{plan.method} needs a scoring pass, which is not written for a {text.model_type} decoder{window}; choose "
            "a method without one."
        )
    return plan


def encoder_depth(config: Any) -> int:
    """Return the number of layers of the vision encoder, those that do not run included."""
    vision = config.vision_config
    return int(getattr(vision, "depth", None) or vision.num_hidden_layers)


def _slides(text: Any) -> bool:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(text, "sliding_window", None)) and bool(getattr(text, "use_sliding_window", True))
