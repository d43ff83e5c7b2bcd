"""How a layer rotates its queries and keys by position, for every form that decoders have.

Calls the model's own function, found in the module of its attention; knows the forms `(q, k, cos, sin)` and Llama 4's
complex one, and which layers do not rotate at all.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Wave
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.gather import rows

Rotation = Callable[[Tensor, Any], Tensor]
"""From states (batch, heads, sequence, dim) and the layer's `position_embeddings` to rotated states."""


def rotation(decoder: DecoderView, layer: int) -> Rotation:
    """How a layer rotates.

    Raises:
        Unprunable: if it does so in a way that is not known.
    """
    module = decoder.attention_module(layer)
    if not rotates(decoder, module):
        return lambda states, tables: states
    functions = vars(sys.modules[type(module).__module__])
    usual = functions.get("apply_rotary_pos_emb")
    if usual is not None and "cos" in inspect.signature(usual).parameters:
        return lambda states, tables: usual(states, states, *tables)[0]
    turn = functions.get("apply_rotary_emb")
    if turn is not None and "freqs_cis" in inspect.signature(turn).parameters:
        norm = getattr(module, "qk_norm", lambda states: states)  # Llama 4 norms what it has rotated

        def complex_rotation(states: Tensor, tables: Any) -> Tensor:
            by_token = states.transpose(1, 2)
            turned: Tensor = norm(turn(by_token, by_token, tables)[0])
            return turned.transpose(1, 2)

        return complex_rotation
    raise Unprunable(
        f"{type(decoder.model).__name__} has no apply_rotary_pos_emb(q, k, cos, sin); score with rope=False."
    )


def rotary_rows(decoder: DecoderView, layer: int, tables: Any, of: Wave, start: Tensor) -> Tensor:
    """The cosines or sines that rotate, (batch or 1, sequence, channels), of the `position_embeddings` of a layer.

    Positions are counted from the first token of each prompt, whatever number the model has given that, so that they
    are the same in any batch, with any padding.

    Args:
        decoder: view of the decoder.
        layer: which is given them.
        tables: what it is given: (cos, sin) or complex numbers.
        of: which of the two.
        start: long (batch,), where each prompt starts.

    Raises:
        Unprunable: if the layer is given none.
    """
    if isinstance(tables, Tensor) and tables.is_complex():
        cos, sin = tables.real, tables.imag
    elif isinstance(tables, tuple) and len(tables) == 2:
        cos, sin = tables
    else:
        raise Unprunable(
            f"Layer {layer} of {type(decoder.model).__name__} has no rotary position embedding (cos, sin) to read; "
            "prune at a layer that rotates, or choose a method that does not read positions."
        )
    first = rows(cos, start[:, None], -2), rows(sin, start[:, None], -2)
    return cos * first[0] + sin * first[1] if of == "cos" else sin * first[0] - cos * first[1]


def rotates(decoder: DecoderView, module: Any) -> bool:
    """Whether an attention module rotates at all."""
    if hasattr(module, "use_rope"):
        return bool(module.use_rope)
    if decoder.config.model_type.startswith("cohere2"):  # told by nothing but the attention's forward
        return module.sliding_window is not None
    if decoder.config.model_type.startswith("exaone4"):  # likewise
        return module.sliding_window is None or bool(module.is_sliding)
    kinds = getattr(decoder.config, "rope_parameters", None) or {}
    if hasattr(module, "layer_idx") and decoder.layer_types[module.layer_idx] in kinds:
        return kinds[decoder.layer_types[module.layer_idx]] is not None
    return True
