"""What vLLM's configuration has to say for a model that prunes, and what it may not say."""

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from feathervlm.core.errors import PruningError
from feathervlm.integrations.vllm.architectures import architecture_of


class PruningConfig(VerifyAndUpdateConfig):
    """Lets the model decide on positions, and refuses what pruning does not go with."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Use the machinery of M-RoPE, in which the runner asks the model for the positions of every prompt."""
        architecture_of(model_config.hf_config)
        if not model_config.uses_mrope:
            # On the outer config only: the language model's own rotary embedding has one position per token.
            model_config.hf_config.rope_parameters = {"rope_type": "default", "mrope_section": [1, 1, 1]}

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse combinations that would compute something else.

        Raises:
            PruningError: On the first of them.
        """
        compilation, lora = vllm_config.compilation_config, vllm_config.lora_config
        multimodal = vllm_config.model_config.multimodal_config
        refused = {
            "--pipeline-parallel-size": vllm_config.parallel_config.pipeline_parallel_size > 1,
            "--speculative-config": vllm_config.speculative_config is not None,
            "--enable-tower-connector-lora": lora is not None and lora.enable_tower_connector_lora,
            "compile_mm_encoder": compilation.compile_mm_encoder,
            "cudagraph_mm_encoder": compilation.cudagraph_mm_encoder,
            "--mm-encoder-tp-mode data": multimodal is not None and multimodal.mm_encoder_tp_mode == "data",
            "--video-pruning-rate": multimodal is not None and bool(multimodal.video_pruning_rate),
            "--enable-mm-embeds": multimodal is not None and multimodal.enable_mm_embeds,
        }
        for option, given in refused.items():
            if given:
                raise PruningError(f"feathervlm does not prune under vLLM's {option}; leave it out.")
