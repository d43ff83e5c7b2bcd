"""Which models the plug-in serves, and the names of their architectures; nothing here imports vLLM."""

from typing import NamedTuple


class Architecture(NamedTuple):
    """A model that can be served pruned.

    Attributes:
        name: Name of the pruning architecture.
        target: Module in this package and class, as "module:Class".
    """

    name: str
    target: str


ARCHITECTURES = {
    "llava": Architecture("FeathervlmLlava", "llava:FeathervlmLlava"),
    "qwen2_5_vl": Architecture("FeathervlmQwen2_5_VL", "qwen2_5_vl:FeathervlmQwen25VL"),
}
"""The architecture of every `config.model_type`."""
