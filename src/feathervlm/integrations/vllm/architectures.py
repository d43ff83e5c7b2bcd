"""Which models the plug-in serves, and the names of their architectures; nothing here imports vLLM."""

from collections.abc import Callable
from typing import Any, NamedTuple

from feathervlm.core.errors import PruningError
from feathervlm.serving.check import encoder_depth


class Architecture(NamedTuple):
    """A model that can be served pruned.

    Attributes:
        name: Name of the pruning architecture.
        target: Module in this package and class, as "module:Class".
        encoder_layers: Function that returns, for a config, how many layers of the vision encoder vLLM runs.
    """

    name: str
    target: str
    encoder_layers: Callable[[Any], int]


def layers_to_the_feature(config: Any) -> int:
    """Return the number of layers up to the deepest one whose states the projector takes."""
    depth, chosen = encoder_depth(config), config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    return max(depth + layer + 1 if layer < 0 else layer for layer in layers)


ARCHITECTURES = {
    "llava": Architecture("FeathervlmLlava", "llava:FeathervlmLlava", layers_to_the_feature),
    "qwen2_5_vl": Architecture("FeathervlmQwen2_5_VL", "qwen2_5_vl:FeathervlmQwen25VL", encoder_depth),
}
"""The architecture of every `config.model_type`."""


def architecture_of(config: Any) -> Architecture:
    """Return the architecture that serves a model.

    Raises:
        PruningError: If there is none.
    """
    vision = getattr(config, "vision_config", None)
    kind, tower = str(config.model_type), str(getattr(vision, "model_type", None))
    if kind not in ARCHITECTURES:
        raise PruningError(
            f"A {kind} cannot be served pruned with vLLM, only {', '.join(ARCHITECTURES)} can; take --engine "
            "transformers."
        )
    if kind == "llava" and tower not in ("clip_vision_model", "siglip_vision_model"):
        raise PruningError(
            f"A llava with a {tower} has no square grid, and cannot be served pruned with vLLM; take --engine "
            "transformers."
        )
    return ARCHITECTURES[kind]
