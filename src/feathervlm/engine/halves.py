"""Rows that skip a half of each layer: the MLP, or the attention."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Half
from feathervlm.engine.apart import check_apart
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.gather import gather_rows
from feathervlm.engine.rows import RowTracker

AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_self_attn_layernorm", "post_attention_layernorm")
"""Names of norms that may follow a half of a layer, before its output is added."""


class _Half:
    """Lets some rows skip a module: it runs on the others, and adds zeros to these."""

    def __init__(self, rows: RowTracker) -> None:
        self.rows = rows

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.rows.lighter is None or self.rows.lighter.index is None or self.rows.making_apart:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = gather_rows(hidden, self.rows.lighter.index, -2)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        lighter = self.rows.lighter
        if lighter is None or lighter.index is None or self.rows.making_apart:
            return None
        change = output[0] if isinstance(output, tuple) else output
        count, index = self.rows.positions.shape[1], lighter.index
        change = change.reshape(*index.shape, -1)  # mixtures of experts may return a list of tokens
        if lighter.valid is not None:  # fillers go to a row that is cut off again
            index = torch.where(lighter.valid, index, count)
        index = index.to(change.device)[..., None].expand_as(change)
        whole: Tensor = change.new_zeros(len(change), count + 1, change.shape[2]).scatter(1, index, change)[:, :count]
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


def skip_half(decoder: DecoderView, rows: RowTracker, half: Half, layers: Iterable[int]) -> list[RemovableHandle]:
    """Register hooks that let the rows which `rows` calls the others skip a half of layers.

    Args:
        decoder: View of the decoder.
        rows: The rows of the forward.
        half: The half.
        layers: Indices of the layers.
    """
    hooks, handles = _Half(rows), []
    for index in layers:
        module = decoder.mlp_module(index) if half == "mlp" else decoder.attention_module(index)
        handles.append(module.register_forward_pre_hook(hooks.before, with_kwargs=True))
        handles.append(module.register_forward_hook(hooks.after))
    return handles


def check_half(decoder: DecoderView, family: Family, half: Half, layers: range) -> None:
    """Check that tokens can skip a half of layers.

    Raises:
        Unprunable: If they cannot.
    """
    if half == "attention":
        check_apart(decoder, layers)
    name = type(decoder.model).__name__
    if half == "mlp" and family.row_arguments:
        raise Unprunable(
            f"The MLP of {name} is given {', '.join(family.row_arguments)} with a value for every token, so tokens "
            "cannot skip it; use leave='freeze' without skip=."
        )
    for index in layers:
        if half == "mlp":
            decoder.mlp_module(index)
        norms = [getattr(decoder.layers[index], norm, None) for norm in AFTER]
        if any(getattr(norm, "bias", None) is not None for norm in norms):
            raise Unprunable(
                f"A norm with a bias follows a half of layer {index} of {name}, so tokens that skip it would be "
                "changed; use leave='freeze' without skip=."
            )
