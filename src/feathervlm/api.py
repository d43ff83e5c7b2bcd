"""`prune`: the one function that brings a method, a model and its family together."""

import warnings

from transformers import PreTrainedModel

from feathervlm import families
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.engine.pruning import Pruning
from feathervlm.methods.base import Method, resolve


def prune(
    model: PreTrainedModel,
    method: str | Method | Schedule,
    *,
    layout: VisualLayout | None = None,
    strict: bool = True,
) -> Pruning:
    """Prune the visual tokens of every prompt that `model` is given from now on.

    Use it as a context manager, or call `remove()` on what it returns. Afterwards nothing is left on the model.

    >>> with feathervlm.prune(model, "feather") as pruning:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=64)
    >>> print(pruning.report)  # doctest: +SKIP

    Args:
        model: a transformers vision-language model, or any decoder if `layout` is given.
        method: a spec such as "feather:keep=0.3", a method such as `Feather(keep=0.3)`, or a `Schedule`.
        layout: where the visual tokens of the next prompts are; wins over what the family would find.
        strict: raise if the model or an input cannot be pruned. If False, warn and run unpruned; the report says so.

    Raises:
        PruningError: on an unknown method or parameter, a layer beyond the depth, or a model that is pruned already.
        Unprunable: if `strict` and the model or an input cannot be pruned.
    """
    if not isinstance(model, PreTrainedModel):
        raise PruningError(
            f"prune() takes a transformers model, not {type(model).__name__}; unwrap it first (a PEFT model has "
            "get_base_model(), a compiled one _orig_mod)."
        )
    name, schedule = resolve(method)
    try:
        family = families.find(model, layout)
    except Unprunable as error:
        if strict:
            raise
        warnings.warn(f"feathervlm runs unpruned: {error}", stacklevel=2)
        return Pruning(model, schedule, None, name, strict, str(error))
    return Pruning(model, schedule, family, name, strict)
