"""What listens to one decoder layer while it runs, so that nothing is computed twice. Knows where rows are, no more."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from feathervlm.engine.decoder import DecoderView


@dataclass(eq=False)
class RowView:
    """Where things are in the tensor that a scoring layer sees.

    Attributes:
        query: long (batch, queries), rows of the queries.
        slots: long (batch, visual), row of every visual token; anything where it is gone.
        positions: long (batch, sequence), original position of every row.
        valid: bool (batch, sequence), False on padding and fillers; None if all are real.
    """

    query: Tensor
    slots: Tensor
    positions: Tensor
    valid: Tensor | None


class Probe(ABC):
    """Captures something of a layer.

    Args:
        decoder: view of the decoder.
        layer: which.
        where: tells where things are when the layer runs.
    """

    def __init__(self, decoder: DecoderView, layer: int, where: Callable[[], RowView]) -> None:
        self.decoder, self.layer, self.where = decoder, layer, where
        self.row: RowView | None = None  # as the layer saw it

    @property
    def seen(self) -> RowView:
        """Where things were when the layer ran."""
        assert self.row is not None
        return self.row

    @abstractmethod
    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer lacks what there is to listen to.
        """
