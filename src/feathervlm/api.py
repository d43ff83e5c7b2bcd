"""`prune`, which joins a method, a model and the family that knows the model."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable, UnprunedWarning
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.engine.compiled import compiled_module
from feathervlm.engine.pruning import Pruning
from feathervlm.families.registry import find
from feathervlm.methods.base import Method, resolve


Query = int | Tensor | Callable[[Mapping[str, Any]], "int | Tensor"]
"""What says which token asks: its position, or a function from the arguments of the base model to its position."""


def prune(
    model: nn.Module,
    method: str | Method | Schedule,
    *,
    layout: VisualLayout | None = None,
    query: Query | None = None,
    strict: bool = True,
) -> Pruning:
    """Prune the visual tokens of every prompt that `model` runs from now on.

    Use the result as a context manager, or call its `remove()`. Afterwards nothing of it remains on the model.

    A model that PEFT or `torch.compile` wraps is unwrapped: `pruning.model` is the transformers model inside, which
    keeps its adapters, and calls of the wrapper are pruned, too. Graphs that `torch.compile` has made do not see the
    pruning, so compiled modules run uncompiled until it is removed.

    >>> with feathervlm.prune(model, "feather") as pruning:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=64)
    >>> print(pruning.report)  # doctest: +SKIP

    Args:
        model: A transformers vision-language model, or any decoder if `layout` is given; PEFT and compiled models, too.
        method: A spec such as "feather:keep=0.3", a method such as `Feather(keep=0.3)`, or a `Schedule`.
        layout: The places of the visual tokens of the next prompts; replaces what the family would find.
        query: Position of the last token of the prompt, whose state asks for visual tokens: a whole number (negative
            from the end of the padded row), a long tensor of shape (batch,) or (batch, images), or a function that
            returns one of these for the arguments of the base model. It holds for the next prompts and can be changed
            by `pruning.query = ...`. By default it is found from labels, `logits_to_keep` and padding.
        strict: Whether to raise if the model or an input cannot be pruned. If False, an `UnprunedWarning` is issued,
            the model runs unpruned, and the report gives the reason.

    Raises:
        PruningError: If the method or a parameter is unknown, a layer is beyond the depth, or the model is already
            being pruned.
        Unprunable: If `strict` and the model or an input cannot be pruned.
    """
    inner, wrappers = unwrap(model)
    name, schedule = resolve(method)
    try:
        family = find(inner, layout)
    except Unprunable as error:
        if strict:
            raise
        warnings.warn(f"feathervlm runs unpruned: {error}", UnprunedWarning, stacklevel=2)
        return Pruning(inner, schedule, None, name, strict, str(error))
    return Pruning(inner, schedule, family, name, strict, wrappers=wrappers, query=query)


def unwrap(model: nn.Module) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Return the transformers model inside PEFT's and `torch.compile`'s wrappers, and the wrappers, outermost first.

    Raises:
        PruningError: If there is no transformers model inside.
    """
    wrappers: list[nn.Module] = []
    inner: object = model
    while isinstance(inner, nn.Module) and not isinstance(inner, PreTrainedModel):
        # A compiled module passes every attribute on to the module inside, so this has to be asked first.
        base: object = compiled_module(inner)
        get_base_model: Any = getattr(inner, "get_base_model", None)
        if base is None and hasattr(inner, "peft_config") and callable(get_base_model):
            base = get_base_model()
        if base is None or base is inner:
            break
        wrappers.append(inner)
        inner = base
    if not isinstance(inner, PreTrainedModel):
        raise PruningError(
            f"prune() takes a transformers model, plain or wrapped by PEFT or torch.compile, not "
            f"{type(model).__name__}; pass the transformers model inside it."
        )
    return inner, wrappers
