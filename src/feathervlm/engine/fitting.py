"""Whether a schedule fits a model, asked before there is a prompt. Reads modules and configs; runs nothing."""

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import LayerSignal, LayerStates, Survivors, measured
from feathervlm.engine.anatomy import Anatomy
from feathervlm.engine.family import Family
from feathervlm.engine.rotation import rotation


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
        for signal in map(measured, stage.signals()):
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
