"""Scoring passes: prefills without a cache that find which tokens another schedule keeps of the same input."""

import inspect
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors, scoring_passes
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.prefill import Prefill, StagesDone
from feathervlm.engine.report.records import Record


def survivors(
    schedule: Schedule,
    call: ModelCall,
    layout: VisualLayout,
    decoder: DecoderView,
    family: Family,
    hook_status: HookStatus,
) -> dict[Survivors, Record]:
    """Run every scoring pass that a schedule reads, and return their records.

    Raises:
        Unprunable: On a later turn of a conversation.
    """
    signals = dict.fromkeys(signal for stage in schedule for signal in scoring_passes(stage))
    model = decoder, family, hook_status
    return {signal: score(signal.schedule, call, layout, *model) for signal in signals}


def score(
    schedule: Schedule,
    call: ModelCall,
    layout: VisualLayout,
    decoder: DecoderView,
    family: Family,
    hook_status: HookStatus,
    hidden: tuple[int, list[Tensor]] | None = None,
) -> Record:
    """Run a scoring pass, see `run_stages`, and return its record, with the costs of the layers that ran."""
    prefill = run_stages(schedule, call, layout, decoder, family, hook_status, hidden)
    record, layers = prefill.record, prefill.starts[-1]
    record.costs, record.types = record.costs[:layers], record.types[:layers]
    return record


def run_stages(
    schedule: Schedule,
    call: ModelCall,
    layout: VisualLayout,
    decoder: DecoderView,
    family: Family,
    hook_status: HookStatus,
    hidden: tuple[int, list[Tensor]] | None = None,
) -> Prefill:
    """Run a prefill without a cache as far as its last stage, and return it.

    Args:
        schedule: The stages to run.
        call: The call to score.
        layout: Layout of its visual tokens.
        decoder: View of the decoder.
        family: Family of the model.
        hook_status: Status that pruned cache layers depend on.
        hidden: What to hide from later text, as `Prefill.hide_earlier` takes it; None for nothing.

    Raises:
        Unprunable: On a later turn of a conversation.
    """
    cache, mask = call.arguments.get("past_key_values"), call.arguments.get("attention_mask")
    if cache is not None and int(cache.get_seq_length()):
        raise Unprunable("Scoring in a pass of its own works on the first prompt of a conversation only.")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        mask = mask[..., : call.shape[1]]  # made for a static cache
    arguments = {**call.arguments, "attention_mask": mask}
    if not _passes_on(decoder.base):
        arguments |= {"use_cache": False, "past_key_values": None}
    inner = survivors(schedule, call, layout, decoder, family, hook_status)
    scoring = replace(call, arguments=arguments, found={})
    prefill = Prefill(decoder, family, schedule, scoring, layout, hook_status, scored=inner)
    prefill.ends_after_stages = True
    if hidden is not None:
        prefill.hide_earlier(*hidden)
    prefill.install()
    try:
        with torch.no_grad(), suppress(StagesDone):
            decoder.base.forward(**arguments)
    finally:
        prefill.remove()
    prefill.check_ran()
    return prefill


def _passes_on(base: nn.Module) -> bool:
    """Return whether a model names no arguments of its forward, so that it may add those that it wants to another's."""
    kinds = {parameter.kind for parameter in inspect.signature(base.forward).parameters.values()}
    return kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
