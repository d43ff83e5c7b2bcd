"""Whether a schedule fits a model and then a call, asked before anything runs. Reads modules, configs and caches."""

from transformers.modeling_layers import GradientCheckpointingLayer

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import LayerSignal, LayerStates
from feathervlm.engine.cache.support import check_cache
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.rotary import rotation


def check_schedule(schedule: Schedule, decoder: DecoderView, family: Family) -> None:
    """Refuse what a prompt would only find out.

    Raises:
        Unprunable: if the model does not give a signal, or a stage is where it cannot be.
    """
    for at, stage in zip(schedule.at_layers(len(decoder.layers)), schedule, strict=True):
        if stage.merge is not None and at <= family.injected:
            raise Unprunable(
                f"{type(decoder.model).__name__} adds features to visual tokens until after layer {family.injected}, "
                "of which a merged token would get those of one of its tokens only; merge at layer "
                f"{family.injected + 1} or later."
            )
        for signal in (signal.measured for signal in stage.signals()):
            if isinstance(signal, Survivors):
                check_schedule(signal.schedule, decoder, family)
            if signal == LayerStates("middle"):
                decoder.middle_norm(at - 1)
            if isinstance(signal, LayerSignal):
                layer = decoder.scoring_layer(at - 1)[0] if signal.layer == "K-1" else at
                decoder.head_counts(layer)
                if signal.layer == "K":
                    decoder.input_norm(layer)
                if signal.rope:
                    rotation(decoder, layer)
        decoder.check_positions(stage.positions)


def check_call(call: ModelCall, schedule: Schedule, decoder: DecoderView) -> None:
    """Refuse a prompt that could not be pruned to its end.

    Raises:
        Unprunable: for features made beforehand where they are to be merged, caches of other kinds, and gradient
            checkpointing that would repeat hooks.
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
    if decoder.model.training and checkpointing and "__call__" in GradientCheckpointingLayer.__dict__:
        raise Unprunable(
            "Gradient checkpointing repeats hooks in this version of transformers; use a newer one (5.23)."
        )
