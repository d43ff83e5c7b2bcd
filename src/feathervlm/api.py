"""`prune`, which joins a method, a model and the family that knows the model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable, UnprunedWarning
from feathervlm.core.layout import VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.engine.compiled import compiled_module
from feathervlm.engine.pruning import Pruning
from feathervlm.families.registry import find
from feathervlm.methods.base import Method
from feathervlm.methods.lookup import resolve

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

    Hidden states keep the length of the prompt; they are zero at dropped tokens, which `pruning.report.row_mask` marks.

    >>> with feathervlm.prune(model, "feather") as pruning:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=64)
    >>> print(pruning.report)  # doctest: +SKIP

    Args:
        model: A transformers vision-language model, or any decoder if `layout` is given; PEFT and compiled models, too.
        method: A spec such as "feather:keep=0.3", a method such as `Feather(keep=0.3)`, or a `Schedule`.
        layout: The places of the visual tokens of the next prompts; replaces what the family would find.
        query: Position of the last token of the prompt, whose state asks for visual tokens: a whole number (negative
            from the end of the padded row), a long tensor of shape (batch,) or (batch, images), or a function that
            returns one of these for the arguments of the base model, such as `prompt_end`. It holds for the
            next prompts and can be changed by `pruning.query = ...`. By default it is found from labels,
            `logits_to_keep` and padding.
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


def prompt_end(ids: Sequence[int]) -> Callable[[Mapping[str, Any]], Tensor]:
    """Return a function for `prune(query=...)` that finds where prompts end by the tokens with which they end.

    >>> header = prompt_end([7, 8])
    >>> header({"input_ids": torch.tensor([[1, 7, 8, 5, 6], [1, 2, 3, 7, 8]])})
    tensor([2, 4])

    Args:
        ids: Token ids of the header of an answer, such as those of "<|im_start|>assistant" and a line break. The last
            occurrence in every row counts.

    Raises:
        PruningError: If there are none; the function raises it if a row does not have them.
    """
    header = torch.tensor(list(ids), dtype=torch.long)
    if not len(header):
        raise PruningError("prompt_end() needs the token ids with which prompts end, at least one.")

    def find_ends(arguments: Mapping[str, Any]) -> Tensor:
        tokens = arguments.get("input_ids")
        if tokens is None:
            raise PruningError("prompt_end() reads input_ids, and only inputs_embeds were passed; pass input_ids.")
        length = len(header)
        found = tokens.new_zeros(tokens.shape, dtype=torch.bool)
        if tokens.shape[1] >= length:
            found[:, length - 1 :] = (tokens.unfold(1, length, 1) == header.to(tokens.device)).all(-1)
        if not bool(found.any(1).all()):
            row = int((~found.any(1)).nonzero()[0])
            raise PruningError(f"Row {row} does not contain the tokens {list(ids)} with which its prompt should end.")
        return (found * torch.arange(tokens.shape[1], device=tokens.device)).argmax(1)

    return find_ends


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
