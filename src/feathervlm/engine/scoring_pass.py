"""Scoring passes: prefills without a cache that find which tokens another schedule keeps of the same input."""

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors, scoring_passes
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.prefill import Prefill


def survivors(
    schedule: Schedule,
    call: ModelCall,
    layout: VisualLayout,
    decoder: DecoderView,
    family: Family,
    hook_status: HookStatus,
) -> dict[Survivors, Tensor]:
    """Run every scoring pass that a schedule reads, and return the tokens that each keeps: bool (batch, visual).

    Raises:
        Unprunable: On a later turn of a conversation.
    """
    kept = {}
    for signal in dict.fromkeys(signal for stage in schedule for signal in scoring_passes(stage)):
        cache, mask = call.arguments.get("past_key_values"), call.arguments.get("attention_mask")
        if cache is not None and int(cache.get_seq_length()):
            raise Unprunable("Scoring in a pass of its own works on the first prompt of a conversation only.")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            mask = mask[..., : call.shape[1]]  # made for a static cache
        arguments = {**call.arguments, "use_cache": False, "past_key_values": None, "attention_mask": mask}
        inner = survivors(signal.schedule, call, layout, decoder, family, hook_status)
        scoring = ModelCall(arguments, call.logits_to_keep, call.labels, call.encodings, call.encoded)
        prefill = Prefill(decoder, family, signal.schedule, scoring, layout, hook_status, survivors=inner).install()
        try:
            with torch.no_grad():
                decoder.base.forward(**arguments)
        finally:
            prefill.remove()
        kept[signal] = prefill.record.stages[-1].kept
    return kept
