"""What merging inside the vision encoder is: which layers merge patches, how many stay, and which patches merge.

After the last layer every patch gets the feature of its group, so the number of features is unchanged. A stage of the
language model may use that some of them are copies (`OnePerGroup`).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import encoder_layer_index


class EncoderMerging(ABC):
    """Base of merging inside the vision encoder: a frozen dataclass whose fields are its parameters.

    Attributes:
        compares: What `assign` compares, (images, tokens, dim): the "states" that enter a layer, which are merged
            before it, or its "keys", mean over heads, in which case states are merged between its attention and its
            MLP.
        proportional: Whether later layers attend to a token as often as it stands for patches: the log of that number
            is added to the logits of its key.
    """

    compares: ClassVar[Literal["states", "keys"]]
    proportional: bool

    @abstractmethod
    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        """Return the number of patches of each image after each layer that merges, in the order of layers.

        Args:
            depth: Number of layers of the encoder.
            patches: Number of patches of an image.
            placed: Whether `assign` gets the positions of patches.

        Raises:
            Unprunable: If that depth, or that number of patches, does not allow it.
        """

    @abstractmethod
    def assign(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        cells: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Return the group of every token: long (images, tokens), see `feathervlm.core.encoder.grouping`.

        Args:
            compared: Tensor of shape (images, tokens, dim), see `compares`.
            count: Number of patches after the merge.
            protected: Number of tokens before the patches ([CLS]), which stay single and first.
            cells: long tensor of shape (tokens, 2), row and column of each token of a single image; None for raster
                order.
            window: long tensor of shape (tokens,), ascending, of a single image: only tokens of one window merge.
                Groups are in the order of windows, and more than `count` if the windows do not allow fewer.
        """


def encoder_layer(layer: int | float, depth: int) -> int:
    """Return the 0-based layer of an encoder of `depth` layers."""
    index = encoder_layer_index(layer, depth)
    if not -depth <= index < depth:
        raise Unprunable(f"Layer {layer} is beyond the {depth} layers of this vision encoder; choose a lower one.")
    return index % depth
