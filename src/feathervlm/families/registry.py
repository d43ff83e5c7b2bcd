"""Which family knows a model: a table of every `config.model_type`, filled from the modules of this package."""

from types import ModuleType

from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.family import Family, GivenLayout
from feathervlm.engine.rotary import RotaryRules
from feathervlm.families.generic import Generic
from feathervlm.families.unsupported import UNSUPPORTED

FAMILIES: dict[str, type[Family]] = {}
"""The family of every `config.model_type` that a family knows."""
TEXT_FAMILIES: dict[str, type[Family]] = {}
"""The family that knows the rotation of each text model, by the `config.model_type` of the text model."""


def register(module: ModuleType) -> None:
    """Add the families that a module defines to the tables."""
    for member in vars(module).values():
        if isinstance(member, type) and issubclass(member, Family) and member.__module__ == module.__name__:
            FAMILIES.update(dict.fromkeys(vars(member).get("model_types", ()), member))
            TEXT_FAMILIES.update(dict.fromkeys(vars(member).get("text_types", ()), member))


def find(model: PreTrainedModel, layout: VisualLayout | None = None) -> Family:
    """Return the family of a model, which a given layout replaces.

    A model that no family knows gets the generic one, if that can infer the geometry.

    Raises:
        Unprunable: If the model cannot be pruned, or the places of its visual tokens are not known.
    """
    model = vision_language_model(model)
    family = _find(model, layout)
    family.rotary = rotary_rules(model)
    return family


def vision_language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the vision-language model inside a retrieval model such as ColPali; any other model itself."""
    inside = getattr(model.config, "vlm_config", None) is not None
    return model.base_model if inside else model  # type: ignore[return-value]  # a model with a config of its own


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
    if kind in UNSUPPORTED:
        raise Unprunable(f"{type(model).__name__} ({kind}) cannot be pruned: {UNSUPPORTED[kind]}.")
    has_vision = getattr(model.config, "vision_config", None) is not None
    if has_vision and Generic.fits(model):
        return Generic(model)
    problem = "is of an unknown family, and its geometry cannot be inferred" if has_vision else "takes no images"
    raise Unprunable(
        f"{type(model).__name__} ({kind}) {problem}; pass the places of the visual tokens to prune() as "
        "layout=VisualLayout(mask, grids)."
    )


def family_of(model: PreTrainedModel) -> type[Family]:
    """Return the class of family that `find` gives a model, the generic one if no family knows the model."""
    return FAMILIES.get(str(vision_language_model(model).config.model_type), Generic)
