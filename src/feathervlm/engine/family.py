"""What the engine asks of a model family. Families implement it; the engine imports none of them.

A family knows geometry and quirks of one kind of model: which tokens are visual, which grid they form, and where the
vision encoder's features are.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from feathervlm.core.boxes import BoxFormat
from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Box, VisualLayout
from feathervlm.core.signals import EncoderSignal
from feathervlm.engine.call import ModelCall


class Family(ABC):
    """Geometry and features of a kind of model."""

    title: ClassVar[str] = ""
    """What people call these models."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """`config.model_type` of the models."""
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    """What they take: "image", "video"."""
    geometry: ClassVar[str] = "one square grid"
    """The grids of a picture, in a few words."""
    decoder: ClassVar[str] = "full attention"
    """What the decoder's layers see, in a few words."""
    caches: ClassVar[tuple[str, ...]] = ("dynamic", "static")
    """Kinds of transformers' cache that can be pruned."""
    limits: ClassVar[str] = ""
    """What does not work, in a few words."""
    boxes: ClassVar[BoxFormat | None] = None
    """How the models are asked for a box and answer, never inherited; None where nobody documents it."""
    crops: ClassVar[bool] = False
    """Whether processors of these models crop pictures or pad them, so that `shown` depends on the processor."""
    notes: ClassVar[tuple[str, ...]] = ()
    """What every report should say."""
    row_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of the decoder layers of shape (batch, sequence) that have to follow the rows that are left."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __init_subclass__(cls) -> None:
        # A family that borrows another's geometry was trained on boxes of its own, if on any.
        cls.boxes = cls.__dict__.get("boxes")

    @property
    def injected(self) -> int:
        """The last layer after which the model adds to the hidden states of visual tokens; -1 if there is none."""
        return -1

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        """The part of a picture of `size` (width, height) that the model is shown, in pixels."""
        return 0.0, 0.0, float(size[0]), float(size[1])

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """What to remember of pixels that only the encoder gets to see, by the arguments it is given."""
        return None

    @abstractmethod
    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        """The tensors that the images come in (pixels or features); empty if the call brings no image."""

    @abstractmethod
    def layout(self, call: ModelCall) -> VisualLayout:
        """The layout of a call that brings images.

        Raises:
            PruningError: if placeholders and images do not match.
        """

    def check(self, call: ModelCall, modality: str, output: Any) -> None:
        """Compare what the encoder returned during a call with the layout.

        Raises:
            PruningError: if they do not match.
        """
        return

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        """The encoder's patch features, before the projector: (batch, visual, dim).

        Raises:
            Unprunable: if they cannot be had.
        """
        raise Unprunable(
            "The vision encoder's features of this model are not known; use the projected ones (features=projected)."
        )

    def inside_encoder(self, call: ModelCall, layout: VisualLayout, signal: EncoderSignal) -> Tensor:
        """What was seen inside the encoder, the mean over each token's patches: (batch, visual), keys (..., dim).

        Raises:
            Unprunable: if it cannot be had.
        """
        raise Unprunable("The attention inside this model's vision encoder is not known; choose another method.")


class GivenLayout(Family):
    """A family for any decoder: the user said where the visual tokens are.

    Args:
        model: the model.
        given: the layout.
        known: the family that knows the model's other quirks, if there is one.
    """

    def __init__(self, model: PreTrainedModel, given: VisualLayout, known: Family | None = None) -> None:
        super().__init__(model)
        self.given, self.known = given, known
        if known is not None:
            self.shown = known.shown  # type: ignore[method-assign]

    @property
    def row_arguments(self) -> tuple[str, ...]:  # type: ignore[override]  # as the family says
        """Those of the family."""
        return self.known.row_arguments if self.known else ()

    @property
    def crops(self) -> bool:  # type: ignore[override]
        """As the family says."""
        return self.known.crops if self.known else False

    @property
    def injected(self) -> int:
        """As the family says."""
        return self.known.injected if self.known else -1

    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        """The tokens themselves, unless the sample has no image."""
        return (call.tokens,) if self.given.width else ()

    def layout(self, call: ModelCall) -> VisualLayout:
        """The given layout, fitted to beams and to text that follows."""
        return self.given.to(call.tokens.device).fit(*call.shape)

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        """Not known."""
        raise Unprunable(
            "With layout= the vision encoder's features are not known; use the projected ones (knn:features=projected)."
        )
