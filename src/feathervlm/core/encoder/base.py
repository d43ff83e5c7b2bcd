"""Merging inside the vision encoder: a tower says which of its layers merge patches, how many stay, and which go where.

Behind the last layer every patch gets the feature of its group, so whatever follows finds as many as ever. That some
of them are copies a stage of the language model may use (`OnePerGroup`). Knows neither hooks nor models.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import encoder_layer_index


class EncoderMerging(ABC):
    """Base of what may happen inside the vision encoder: a frozen dataclass whose fields are its parameters.

    Attributes:
        compares: what `places` is given, (images, tokens, dim): the "states" that enter a layer, which are then merged
            before it; or its "keys", mean over heads, and its states are merged between its attention and its MLP.
        proportional: later layers attend to a token as often as it stands for patches: the log of that number is added
            to the logits of its key.
    """

    compares: ClassVar[Literal["states", "keys"]]
    proportional: bool

    @abstractmethod
    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        """The patches that are left of each image behind a merge, by layer of an encoder of `depth`, in order.

        Args:
            depth: layers of the encoder.
            patches: of an image.
            placed: whether `places` will be told where they are.

        Raises:
            Unprunable: if that depth, or that number of patches, does not allow it.
        """

    @abstractmethod
    def places(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        where: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Where every token goes: long (images, tokens), see `feathervlm.core.encoder.grouping`.

        Args:
            compared: (images, tokens, dim), see `compares`.
            count: patches that are left.
            protected: tokens in front of the patches ([CLS]), which stay alone and in front.
            where: long (tokens, 2), row and column of each token of a single image; None for patches in raster order.
            window: long (tokens,), ascending, of a single image: only tokens of one window merge. What is left is in
                the order of windows, and more than `count` if these allow no fewer.
        """


def encoder_layer(layer: int | float, depth: int) -> int:
    """The 0-based layer of an encoder of `depth` layers."""
    index = encoder_layer_index(layer, depth)
    if not -depth <= index < depth:
        raise Unprunable(f"Layer {layer} is beyond the {depth} layers of this vision encoder.")
    return index % depth
