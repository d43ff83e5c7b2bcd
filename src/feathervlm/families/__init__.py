"""Model families: the only code that knows a model's geometry. One file each, registered by `model_type`."""

from collections.abc import Callable

from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.family import Family, GivenLayout
from feathervlm.families.llava import Llava

FAMILIES: dict[str, Callable[[PreTrainedModel], Family]] = {"llava": Llava}


def find(model: PreTrainedModel, layout: VisualLayout | None = None) -> Family:
    """The family of a model; a given layout wins over all.

    Raises:
        Unprunable: if no family knows the model and no layout is given.
    """
    if layout is not None:
        return GivenLayout(model, layout)
    kind = getattr(model.config, "model_type", None)
    if kind in FAMILIES:
        return FAMILIES[kind](model)
    has_vision = getattr(model.config, "vision_config", None) is not None
    problem = "is not a model family that is known yet" if has_vision else "takes no images"
    raise Unprunable(
        f"{type(model).__name__} ({kind}) {problem}; tell prune() where the visual tokens are with "
        "layout=VisualLayout(mask, grids)."
    )
