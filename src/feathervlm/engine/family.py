"""What the engine asks of a model family. Families implement it; the engine imports none of them.

A family knows geometry and quirks of one kind of model: which tokens are visual, which grid they form, and where the
vision encoder's features are.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout


@dataclass(eq=False)
class Call:
    """One call of the base model: its arguments by name, and what the call of the full model adds.

    Attributes:
        arguments: of the base model's forward.
        logits_to_keep: of the full model's forward: how many trailing positions are asked for (0: all).
        labels: of the full model's forward, in training.
    """

    arguments: dict[str, Any]
    logits_to_keep: Any = 0
    labels: Tensor | None = None
    encoded: list[Any] = field(default_factory=list)
    """What the vision encoder returned while this call ran, if it did."""

    @property
    def tokens(self) -> Tensor:
        """`input_ids` or `inputs_embeds`, whichever was given."""
        ids = self.arguments.get("input_ids")
        given = ids if ids is not None else self.arguments.get("inputs_embeds")
        if given is None:
            raise Unprunable("The model was called with neither input_ids nor inputs_embeds.")
        return given

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, sequence)."""
        return self.tokens.shape[0], self.tokens.shape[1]


class Family(Protocol):
    """Geometry and features of a kind of model."""

    def visual_source(self, call: Call) -> tuple[Tensor, ...]:
        """The tensors that the images come in (pixels or features); empty if the call brings no image."""
        ...

    def layout(self, call: Call) -> VisualLayout:
        """The layout of a call that brings images.

        Raises:
            PruningError: if placeholders and images do not match.
        """
        ...

    def vision_features(self, call: Call, layout: VisualLayout) -> Tensor:
        """The encoder's patch features, before the projector: (batch, visual, dim).

        Raises:
            Unprunable: if they cannot be had.
        """
        ...


@dataclass(frozen=True, eq=False)
class GivenLayout:
    """A family for any decoder: the user said where the visual tokens are, and nothing more is known."""

    model: PreTrainedModel
    given: VisualLayout

    def visual_source(self, call: Call) -> tuple[Tensor, ...]:
        """The tokens themselves, unless the sample has no image."""
        return (call.tokens,) if self.given.width else ()

    def layout(self, call: Call) -> VisualLayout:
        """The given layout, fitted to beams and to text that follows."""
        return self.given.to(call.tokens.device).fit(*call.shape)

    def vision_features(self, call: Call, layout: VisualLayout) -> Tensor:
        """Not known."""
        raise Unprunable(
            "With layout= the vision encoder's features are not known; use the projected ones (knn:features=projected)."
        )
