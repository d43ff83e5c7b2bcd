"""What a pruned forward returns: states of the original length, which are zero at the tokens that a layer did not run.

A token that was dropped, waits or is frozen has no state of that layer. Zero says so to whoever reads the states, adds
nothing to a sum over tokens, and has a similarity of zero to everything; the mask of the remaining tokens is
`Report.row_mask`.
"""

from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from feathervlm.engine.prefill import Prefill

EMBEDDINGS = "embeddings"
"""Name under which retrieval models return a vector for every token."""


def whole_outputs(output: Any, prefill: Prefill) -> Any:
    """Return the output of a pruned base model with zeros for the tokens that its layers did not run.

    Args:
        output: Output of the base model: a `ModelOutput`, a tuple that begins with the last hidden states, or a tensor.
        prefill: The forward that made it.
    """
    dropped = prefill.record.dropped()
    if isinstance(output, Tensor):
        return zeros_at(output, dropped)
    if isinstance(output, tuple):
        return tuple(
            _whole_layers(part, prefill) if isinstance(part, tuple) else zeros_at(part, dropped) if not place else part
            for place, part in enumerate(output)
        )
    for name in ("last_hidden_state", EMBEDDINGS):
        if isinstance(getattr(output, name, None), Tensor):
            setattr(output, name, zeros_at(getattr(output, name), dropped))
    if isinstance(getattr(output, "hidden_states", None), tuple):
        output.hidden_states = _whole_layers(output.hidden_states, prefill)
    return output


def zero_embeddings(output: Any, dropped: Tensor) -> Any:
    """Return the output of a model with a head, with zeros for dropped tokens where it has a vector for every token.

    Args:
        output: Output of the model: a `ModelOutput`, a tuple that begins with the vectors, or a tensor.
        dropped: True for tokens that were dropped, bool (batch, sequence).
    """
    if isinstance(output, Tensor):
        return zeros_at(output, dropped)
    if isinstance(output, tuple):
        return zeros_at(output[0], dropped), *output[1:]
    if isinstance(getattr(output, EMBEDDINGS, None), Tensor):
        setattr(output, EMBEDDINGS, zeros_at(getattr(output, EMBEDDINGS), dropped))
    return output


def zeros_at(states: Any, dropped: Tensor) -> Any:
    """Return states with zeros for dropped tokens; anything but states of every token is returned as it is.

    Args:
        states: States of shape (batch, sequence, dim).
        dropped: True for tokens that were dropped, bool (batch, sequence).
    """
    if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[:2] != dropped.shape:
        return states
    mask = dropped.to(states.device)[..., None]
    # The output of a last norm or of a head belongs to nobody else, so that a copy is not needed.
    return states.masked_fill(mask, 0) if states.requires_grad else states.masked_fill_(mask, 0)


def _whole_layers(states: tuple[Any, ...], prefill: Prefill) -> tuple[Any, ...]:
    """Return the hidden states of all layers, the embeddings first, in the original length."""
    if len(states) != len(prefill.decoder.layers) + 1:
        return states
    whole: list[Any] = []
    for place, output in enumerate(states):
        stage = bisect_right(prefill.starts, max(place - 1, 0)) - 1  # what enters layer 0 comes first
        whole.append(output if stage < 0 else _whole(output, prefill, stage))
    return tuple(whole)


def _whole(states: Tensor, prefill: Prefill, stage: int) -> Tensor:
    """Return the hidden states after a layer, for all rows or for those that a stage left, in the original length."""
    if states.shape[1] == prefill.sequence:
        return states.masked_fill(prefill.record.dropped(stage).to(states.device)[..., None], 0)
    positions, valid = prefill.present[stage]
    index = positions if valid is None else torch.where(valid, positions, prefill.sequence)
    index = index.to(states.device)[..., None].expand(-1, -1, states.shape[2])
    empty = states.new_zeros(len(states), prefill.sequence + 1, states.shape[2])
    whole = empty.scatter(1, index, states)[:, :-1]
    return whole.masked_fill(prefill.record.dropped(stage).to(states.device)[..., None], 0)  # means of groups
