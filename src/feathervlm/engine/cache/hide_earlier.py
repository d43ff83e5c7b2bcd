"""Text after the prompt in one forward, for a method that also cuts the cache of the layers before its stage.

When an answer is decoded, these layers no longer have the keys of dropped tokens. In a forward of prompt and answer
together they still have them, so the mask has to hide them from the answer. What is dropped must be known by then,
which takes a scoring pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.decoder import FLASH, DecoderView
from feathervlm.engine.masks import additive


class HiddenEarlier:
    """Hooks that hide tokens, which a later stage drops, from the text after the prompt.

    Args:
        decoder: View of the decoder.
        layers: Layers before the stage.
        layout: Layout of the visual tokens.
        kept: Tokens that the stage keeps, bool (batch, visual).
        query: Position of the query of every image, long (batch, images).
    """

    def __init__(
        self, decoder: DecoderView, layers: Sequence[int], layout: VisualLayout, kept: Tensor, query: Tensor
    ) -> None:
        self.decoder, self.layers = decoder, layers
        (batch, sequence), geometry = layout.mask.shape, layout.geometry()
        # The position from which on a column is hidden: never, for all but dropped tokens.
        since = torch.where(geometry.exists & ~kept, query.gather(1, geometry.image), sequence)
        columns = query.new_full((batch, sequence), sequence)
        columns = columns.scatter_reduce(1, layout.positions(), since, "amin")
        rows = torch.arange(sequence, device=query.device)
        self.hidden = rows[None, :, None] > columns[:, None, :]
        self.memo: dict[tuple[str, torch.device], Any] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks, which come before those that prune.

        Raises:
            Unprunable: If the attention implementation cannot hide single keys.
        """
        if FLASH in self.decoder.attention:
            raise Unprunable(
                "Flash attention cannot hide tokens from a part of the sequence, as this method needs for text after "
                "the prompt; load the model with 'sdpa'."
            )
        keys = filter(self.decoder.keeps_keys, self.layers)
        return [
            self.decoder.layers[index].register_forward_pre_hook(
                partial(self._enter, index), with_kwargs=True, prepend=True
            )
            for index in keys
        ]

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask, hidden = kwargs.get("attention_mask"), args[0] if args else kwargs["hidden_states"]
        key = self.decoder.layer_types[index], hidden.device
        if key not in self.memo:
            self.memo[key] = self._mask(mask, hidden)
        return args, {**kwargs, "attention_mask": self.memo[key]}

    def _mask(self, mask: Any, states: Tensor) -> Tensor:
        seen = ~self.hidden[:, None].to(states.device)
        if mask is None:
            seen = seen & torch.ones_like(seen[:1]).tril()
            return additive(seen, states.dtype) if self.decoder.attention == "eager" else seen
        if not isinstance(mask, Tensor) or mask.shape[-2:] != seen.shape[-2:]:
            raise Unprunable(
                "Text after the prompt cannot be hidden from with a cache of earlier turns; pass the whole "
                "conversation in one forward."
            )
        mask = mask.to(states.device)
        return mask & seen if mask.dtype == torch.bool else torch.where(seen, mask, torch.finfo(mask.dtype).min)
