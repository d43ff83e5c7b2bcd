"""vLLM: models that prune visual tokens before the language model, as a plug-in that adds names of architectures.

`register` is the entry point of the group `vllm.general_plugins`. The other modules of this package import vLLM.
"""

from feathervlm.core.errors import PruningError
from feathervlm.integrations.vllm.architectures import ARCHITECTURES


def register() -> None:
    """Register the pruning architectures; vLLM calls it in every process, possibly more than once.

    Raises:
        PruningError: If this version of vLLM is not supported.
    """
    import vllm
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from feathervlm.integrations.vllm.config import PruningConfig

    if tuple(vllm.__version__.split(".")[:2]) != ("0", "32"):
        raise PruningError(
            f"feathervlm serves with vLLM 0.32, and {vllm.__version__} is installed; run pip install "
            "'feathervlm[vllm]'."
        )
    for architecture in ARCHITECTURES.values():
        ModelRegistry.register_model(architecture.name, f"{__name__}.{architecture.target}")
        MODELS_CONFIG_MAP[architecture.name] = PruningConfig
