"""Whether a schedule fits a model and then a call, asked before anything runs. Reads modules, configs and caches."""

from transformers.modeling_layers import GradientCheckpointingLayer

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import LayerSignal, LayerStates
from feathervlm.engine.cache.support import check_cache
from feathervlm.engine.call import Call
from feathervlm.engine.decoder import Anatomy
from feathervlm.engine.family import Family
from feathervlm.engine.rotary import rotation


def check_schedule(schedule: Schedule, anatomy: Anatomy, family: Family) -> None:
    """Refuse what a prompt would only find out.

    Raises:
        Unprunable: if the model does not give a signal, or a stage is where it cannot be.
    """
    for at, stage in zip(schedule.at_layers(len(anatomy.layers)), schedule, strict=True):
        if stage.merge is not None and at <= family.injected:
            raise Unprunable(
                f"{type(anatomy.model).__name__} adds features to visual tokens until after layer {family.injected}, "
                "of which a merged token would get those of one of its tokens only; merge at layer "
                f"{family.injected + 1} or later."
            )
        for signal in (signal.measured for signal in stage.signals()):
            if isinstance(signal, Survivors):
                check_schedule(signal.schedule, anatomy, family)
            if signal == LayerStates("middle"):
                anatomy.middle_norm(at - 1)
            if isinstance(signal, LayerSignal):
                layer = anatomy.scoring_layer(at - 1)[0] if signal.layer == "K-1" else at
                anatomy.head_counts(layer)
                if signal.layer == "K":
                    anatomy.input_norm(layer)
                if signal.rope:
                    rotation(anatomy, layer)
        anatomy.check_positions(stage.positions)


def check_call(call: Call, schedule: Schedule, anatomy: Anatomy) -> None:
    """Refuse a prompt that could not be pruned to its end.

    Raises:
        Unprunable: for features made beforehand where they are to be merged, caches of other kinds, and gradient
            checkpointing that would repeat hooks.
    """
    if schedule.tower and not call.encoder_runs() and not call.brings_pixels:
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, or could not be merged "
            "inside the vision encoder; make them inside."
        )
    cache = call.arguments.get("past_key_values")
    if cache is not None:
        pruned = range(schedule.first_cut(len(anatomy.layers)), len(anatomy.layers))
        check_cache(cache, [layer for layer in pruned if anatomy.keeps_keys(layer)])
    checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in anatomy.layers)
    if anatomy.model.training and checkpointing and "__call__" in GradientCheckpointingLayer.__dict__:
        raise Unprunable(
            "Gradient checkpointing repeats hooks in this version of transformers; use a newer one (5.23)."
        )
