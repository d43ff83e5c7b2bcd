"""Passes of their own that answer `Survivors`: which tokens another schedule would leave of the same input.

Each is a prefill without a cache, whose output nobody sees. Knows no methods.
"""

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors
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
    attachment: HookStatus,
) -> dict[Survivors, Tensor]:
    """What every schedule leaves whose survivors are asked for: bool (batch, visual) each.

    Raises:
        Unprunable: on a later turn of a conversation.
    """
    wanted = dict.fromkeys(s for stage in schedule for s in stage.signals() if isinstance(s, Survivors))
    found = {}
    for signal in wanted:
        cache, mask = call.arguments.get("past_key_values"), call.arguments.get("attention_mask")
        if cache is not None and int(cache.get_seq_length()):
            raise Unprunable("Scoring in a pass of its own works on the first prompt of a conversation only.")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            mask = mask[..., : call.shape[1]]  # made for a static cache
        arguments = {**call.arguments, "use_cache": False, "past_key_values": None, "attention_mask": mask}
        inner = survivors(signal.schedule, call, layout, decoder, family, attachment)
        scoring = ModelCall(arguments, call.logits_to_keep, call.labels, call.encodings, call.encoded)
        probe = Prefill(decoder, family, signal.schedule, scoring, layout, attachment, survivors=inner).install()
        try:
            with torch.no_grad():
                decoder.base.forward(**arguments)
        finally:
            probe.remove()
        found[signal] = probe.record.stages[-1].kept
    return found
