"""Whether a schedule fits a model, a call, and a later turn of a conversation, checked before anything runs."""

from transformers.modeling_layers import GradientCheckpointingLayer

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import scoring_passes
from feathervlm.engine.apart import check_apart
from feathervlm.engine.cache.support import check_cache
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.halves import check_half
from feathervlm.engine.probes.registry import probe_class


def check_schedule(schedule: Schedule, decoder: DecoderView, family: Family) -> None:
    """Check what is known of a model without a prompt.

    Raises:
        Unprunable: If the model does not give a signal, or a stage is where it cannot be.
    """
    depth = len(decoder.layers)
    starts = schedule.at_layers(depth)
    for at, end, stage in zip(starts, [*starts[1:], depth], schedule, strict=False):
        if stage.skip is not None:
            check_half(decoder, family, stage.skip, range(at, end))
        elif stage.leave == "freeze":
            check_apart(decoder, range(at, end))
        if (stage.merge is not None or stage.update is not None) and at <= family.injected:
            raise Unprunable(
                f"{type(decoder.model).__name__} adds features to visual tokens until after layer {family.injected}, "
                "of which a merged token would get those of one of its tokens only; merge at layer "
                f"{family.injected + 1} or later."
            )
        for signal in stage.signals():
            probe_class(signal).check(signal, decoder, family, at)
        for scoring_pass in scoring_passes(stage):
            check_schedule(scoring_pass.schedule, decoder, family)
        decoder.check_positions(stage.positions)


def check_call(call: ModelCall, schedule: Schedule, decoder: DecoderView) -> None:
    """Check a prompt before it is pruned.

    Raises:
        Unprunable: If the features to merge were made beforehand, the cache cannot be pruned, or gradient
            checkpointing would repeat hooks.
    """
    if schedule.encoder and not call.encoder_runs() and not call.brings_pixels:
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, or could not be merged "
            "inside the vision encoder; make them inside."
        )
    cache = call.arguments.get("past_key_values")
    if cache is not None:
        pruned = range(schedule.first_cut(len(decoder.layers)), len(decoder.layers))
        check_cache(cache, [layer for layer in pruned if decoder.keeps_keys(layer)])
    checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.layers)
    if decoder.model.training and checkpointing and any(stage.leave == "freeze" for stage in schedule):
        raise Unprunable(
            "Gradient checkpointing takes the cache away from layers, which hands them the keys of frozen tokens; "
            "train without it, or use leave='drop'."
        )
    if decoder.model.training and checkpointing and "__call__" in GradientCheckpointingLayer.__dict__:
        raise Unprunable(
            "Gradient checkpointing repeats hooks in this version of transformers; use a newer one (5.23)."
        )


def check_later_turn(schedule: Schedule) -> None:
    """Check that a schedule can run on new images of a conversation whose earlier turns are cached.

    Raises:
        Unprunable: If it renumbers positions, or reads a signal that needs the earlier turns.
    """
    if any(stage.positions == "renumber" for stage in schedule):
        raise Unprunable("positions='renumber' works on the first prompt of a conversation only.")
    for stage in schedule:
        for signal in stage.signals():
            probe_class(signal).check_later_turn(signal)
