"""Keys and values of rows that do not attend: made by the layer itself, without queries, attention or MLP.

The layer runs on these rows as far as it hands their keys and values to a cache. This object takes them and ends the
run. So whatever the layer does with keys and values (norms, adapters, quantized weights, its rotation) is done, and a
query is projected for none of the rows.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.engine.decoder import FLASH, FUSED, DecoderView, fused_projection
from feathervlm.engine.gather import gather_slots
from feathervlm.engine.row_sets import Apart

QUERY = "q_proj"


class KeysTaken(Exception):  # noqa: N818 - it is no error
    """Ends the run of a layer that has made keys and values."""


class KeyTaker:
    """A cache that takes the keys and values of one layer and ends its run."""

    def __init__(self) -> None:
        self.taken: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take keys and values, (batch, heads, rows, dim).

        Raises:
            KeysTaken: Always.
        """
        self.taken = keys, values
        raise KeysTaken

    def get_seq_length(self, *args: Any) -> int:
        """Return the number of tokens that it holds, which is none."""
        return 0


class JoinedCache:
    """A cache that adds keys and values which were made apart to those that a layer brings.

    Args:
        cache: The cache that stores them; None if nothing is stored.
        apart: The rows that they belong to.
        taken: Keys and values of these rows, (batch, heads, rows, dim).
    """

    def __init__(self, cache: Any, apart: Apart, taken: tuple[Tensor, Tensor]) -> None:
        self.cache, self.apart, self.taken = cache, apart, taken

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values of all rows that are read, and return all that are attended to."""
        joined = [
            gather_slots(torch.cat([apart.to(own.device, own.dtype), own], 2), self.apart.place)
            for apart, own in zip(self.taken, (keys, values), strict=True)
        ]
        if self.cache is None:
            return joined[0], joined[1]
        states: tuple[Tensor, Tensor] = self.cache.update(*joined, *args, **kwargs)
        return states

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def keys_and_values(
    decoder: DecoderView, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return keys and values that a layer makes of some rows, (batch, heads, rows, dim), as it would store them.

    Args:
        decoder: View of the decoder.
        index: Index of the layer.
        hidden: States that enter the layer, (batch, rows, dim).
        args: The layer's other positional arguments.
        kwargs: Its named arguments for these rows.
    """
    layer, taker = decoder.layers[index], KeyTaker()
    handles = _without_queries(decoder, index)
    forward: Any = layer.forward  # not the layer itself, whose hooks are for the rows that attend
    try:
        forward(hidden, *args, **{**kwargs, "past_key_values": taker})
    except KeysTaken:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if taker.taken is None:
        raise PruningError(
            f"Layer {index} of {type(decoder.model).__name__} ran without handing its keys to a cache, so tokens "
            "cannot be frozen in it; use leave='drop'."
        )
    return taker.taken


def _without_queries(decoder: DecoderView, index: int) -> list[Any]:
    """Let the projection of a layer make zeros in place of queries, and return the hooks."""
    module = decoder.attention_module(index)
    seen: list[Tensor] = []

    def before(projection: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = args[0]
        seen.append(states)
        return (states[:, :0], *args[1:]), kwargs

    def zeros(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        states = seen.pop()
        return output.new_zeros(len(output), 1, output.shape[-1]).expand(-1, states.shape[1], -1)

    def keys_only(projection: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        states, queries = seen.pop(), _queries(decoder, index)
        bias = None if projection.bias is None else projection.bias[queries:]
        keys = nn.functional.linear(states, projection.weight[queries:], bias)
        return torch.cat([keys.new_zeros(*keys.shape[:2], queries), keys], -1)

    query = getattr(module, QUERY, None)
    projection, after = (query, zeros) if query is not None else (fused_projection(module), keys_only)
    assert projection is not None  # `check_apart`
    # The last hook before and the first after: those that others registered see what the layer gives and gets.
    return [
        projection.register_forward_pre_hook(before, with_kwargs=True),
        projection.register_forward_hook(after, prepend=True),
    ]


def _queries(decoder: DecoderView, index: int) -> int:
    heads, _, dim = decoder.head_counts(index)
    return heads * dim


def check_apart(decoder: DecoderView, layers: range) -> None:
    """Check that layers can make keys and values without queries.

    Raises:
        Unprunable: If one of them cannot.
    """
    name = type(decoder.model).__name__
    if FLASH in decoder.attention:
        raise Unprunable(
            "Flash attention cannot read tokens that have no query (leave='freeze'); load the model with 'sdpa'."
        )
    for index in layers:
        if not decoder.keeps_keys(index):
            raise Unprunable(
                f"Layer {index} of {name} carries a state along the sequence and has no keys, so a token cannot be "
                "frozen in it; use leave='drop' or leave='wait'."
            )
        module = decoder.attention_module(index)
        fused = None if hasattr(module, QUERY) else fused_projection(module)
        if "past_key_values" not in inspect.signature(module.forward).parameters:
            raise Unprunable(
                f"The attention of layer {index} of {name} hands its keys to no cache, so a token cannot be frozen in "
                "it; use leave='drop' or leave='wait'."
            )
        if not hasattr(module, QUERY) and fused is None:
            raise Unprunable(
                f"Layer {index} of {name} has none of {QUERY}, {', '.join(FUSED)}, so its keys cannot be made without "
                "queries (leave='freeze'); use leave='drop'."
            )
        if fused is not None and (type(fused) is not nn.Linear or fused.weight.is_meta):
            library, name_of = type(fused).__module__.partition(".")[0], type(fused).__name__
            kind = "an offloaded Linear" if type(fused) is nn.Linear else f"a {library}.{name_of}"
            raise Unprunable(
                f"Layer {index} of {name} makes queries, keys and values at once in {kind}, of which keys cannot be "
                "made alone (leave='freeze'); load it without adapters, quantization and offloading, or use "
                "leave='drop'."
            )
