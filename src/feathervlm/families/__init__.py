"""Model families: the only code that knows a model's geometry. One file each, found by itself.

A module of this package that defines a `Family` with `model_types` is all that it takes to know those models.
"""

import importlib
import pkgutil

from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.family import Family, GivenLayout
from feathervlm.engine.rotary import RotaryRules
from feathervlm.families.generic import Generic
from feathervlm.families.unsupported import REFUSED


def _discover(types: str) -> dict[str, type[Family]]:
    """Return the families by each entry of their own class attribute `types`."""
    found: dict[str, type[Family]] = {}
    for info in pkgutil.iter_modules(__path__, f"{__name__}."):
        if info.name.endswith(".describe"):  # describes families and imports this table
            continue
        module = importlib.import_module(info.name)
        for part in vars(module).values():
            if isinstance(part, type) and issubclass(part, Family) and part.__module__ == info.name:
                found |= dict.fromkeys(part.__dict__.get(types, ()), part)
    return found


FAMILIES: dict[str, type[Family]] = _discover("model_types")
"""The family of every `config.model_type` that is known."""
TEXT_FAMILIES: dict[str, type[Family]] = _discover("text_types")
"""The family that knows the rotation of each text model, by the `config.model_type` of that."""


def find(model: PreTrainedModel, layout: VisualLayout | None = None) -> Family:
    """The family of a model; a given layout wins over all.

    A model that no family knows gets the generic one if that can tell its geometry.

    Raises:
        Unprunable: if the model cannot be pruned, or nothing tells where its visual tokens are.
    """
    family = _find(model, layout)
    family.rotary = rotary_rules(model)
    return family


def rotary_rules(model: PreTrainedModel) -> RotaryRules:
    """Return the rules of the family that knows the model's text part, else of the model's family, else the usual."""
    text, kind = str(model.config.get_text_config(decoder=True).model_type), str(model.config.model_type)
    rules: type[RotaryRules] = TEXT_FAMILIES.get(text) or FAMILIES.get(kind) or RotaryRules
    return rules(model)


def _find(model: PreTrainedModel, layout: VisualLayout | None) -> Family:
    kind = str(getattr(model.config, "model_type", None))
    known = FAMILIES[kind](model) if kind in FAMILIES else None
    if layout is not None:
        return GivenLayout(model, layout, known)
    if known is not None:
        return known
    if kind in REFUSED:
        raise Unprunable(f"{type(model).__name__} ({kind}) cannot be pruned: {REFUSED[kind]}.")
    has_vision = getattr(model.config, "vision_config", None) is not None
    if has_vision and Generic.fits(model):
        return Generic(model)
    problem = (
        "is of a family that is not known, with geometry that cannot be inferred" if has_vision else "takes no images"
    )
    raise Unprunable(
        f"{type(model).__name__} ({kind}) {problem}; tell prune() where the visual tokens are with "
        "layout=VisualLayout(mask, grids)."
    )


def family_of(model: PreTrainedModel) -> type[Family]:
    """The kind of family that `find` gives a model, the generic one if none knows it."""
    return FAMILIES.get(str(model.config.model_type), Generic)
