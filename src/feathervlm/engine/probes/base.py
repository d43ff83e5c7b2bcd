"""What listens to one decoder layer while it runs, so that nothing is computed twice. Knows where rows are, no more."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from feathervlm.engine.decoder import Anatomy


@dataclass(eq=False)
class Row:
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


class Tap(ABC):
    """Captures something of a layer.

    Args:
        anatomy: of the decoder.
        layer: which.
        where: tells where things are when the layer runs.
    """

    def __init__(self, anatomy: Anatomy, layer: int, where: Callable[[], Row]) -> None:
        self.anatomy, self.layer, self.where = anatomy, layer, where
        self.row: Row | None = None  # as the layer saw it

    @property
    def seen(self) -> Row:
        """Where things were when the layer ran."""
        assert self.row is not None
        return self.row

    @abstractmethod
    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer lacks what there is to listen to.
        """
