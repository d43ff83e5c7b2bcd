"""How decoder layers rotate queries and keys by position.

The rotation itself is the model's own function, found in the module of its attention: `(q, k, cos, sin)` or the form
with complex numbers. Which layers rotate, and what follows the rotation, is a matter of the text model: `RotaryRules`.
"""

import inspect
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Wave
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.gather import gather_rows

Rotation = Callable[[Tensor, Any], Tensor]
"""A function from states (batch, heads, sequence, dim) and a layer's `position_embeddings` to rotated states."""


class RotaryRules:
    """Which layers of a text model rotate, and what they do afterwards.

    These are the rules of most models. A family overrides the methods for the text models that it names in
    `text_types`, which then hold for every model with such a text part, images or not.

    Args:
        model: A transformers model.
    """

    text_types: ClassVar[tuple[str, ...]] = ()
    """`config.model_type` of the text models whose rules these are; never inherited."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @cached_property
    def decoder_view(self) -> DecoderView:
        """The view of the model's decoder."""
        return DecoderView(self.model)

    def rotates(self, layer: int) -> bool:
        """Return whether a decoder layer rotates its queries and keys.

        By default as its attention module says, or the rotation that the config names for this kind of layer.
        """
        module = self.decoder_view.attention_module(layer)
        if hasattr(module, "use_rope"):
            return bool(module.use_rope)
        kinds = getattr(self.decoder_view.config, "rope_parameters", None) or {}
        kind = self.decoder_view.layer_types[layer]
        return kind not in kinds or kinds[kind] is not None

    def normalize_after_rotary(
        self, layer: int, name: Literal["query", "key"], states: Tensor, rotated: bool
    ) -> Tensor:
        """Return queries or keys as a layer compares them, if it norms them after its rotation.

        Args:
            layer: Index of the decoder layer.
            name: Which of the two the states are.
            states: States of shape (batch, heads, sequence, dim).
            rotated: Whether they have been rotated; False where a criterion compares them without rotation.
        """
        return states


def rotation(decoder: DecoderView, rules: RotaryRules, layer: int) -> Rotation:
    """Return the function by which a layer rotates; the identity for a layer that does not.

    Raises:
        Unprunable: If the model has a form of rotation that is not supported.
    """
    if not rules.rotates(layer):
        return lambda states, tables: states
    functions = vars(sys.modules[type(decoder.attention_module(layer)).__module__])
    rotate_pair = functions.get("apply_rotary_pos_emb")
    if rotate_pair is not None and "cos" in inspect.signature(rotate_pair).parameters:
        return lambda states, tables: rotate_pair(states, states, *tables)[0]
    rotate_complex = functions.get("apply_rotary_emb")
    if rotate_complex is not None and "freqs_cis" in inspect.signature(rotate_complex).parameters:

        def rotate(states: Tensor, tables: Any) -> Tensor:
            by_token = states.transpose(1, 2)
            rotated: Tensor = rotate_complex(by_token, by_token, tables)[0]
            return rotated.transpose(1, 2)

        return rotate
    raise Unprunable(
        f"{type(decoder.model).__name__} has no apply_rotary_pos_emb(q, k, cos, sin); score with rope=False."
    )


def rotary_rows(decoder: DecoderView, layer: int, tables: Any, of: Wave, start: Tensor) -> Tensor:
    """Return the cosines or sines of a layer's `position_embeddings`, of shape (batch or 1, sequence, channels).

    Positions are counted from the first token of each prompt, whatever number the model gives to that token, so that
    they are the same in any batch and with any padding.

    Args:
        decoder: View of the decoder.
        layer: Index of the layer, for the message.
        tables: Its `position_embeddings`, (cos, sin) or complex numbers.
        of: Which of the two to return.
        start: Position of the first token of each prompt, long (batch,).

    Raises:
        Unprunable: If the layer has no such tables.
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
    first = gather_rows(cos, start[:, None], -2), gather_rows(sin, start[:, None], -2)
    return cos * first[0] + sin * first[1] if of == "cos" else sin * first[0] - cos * first[1]
