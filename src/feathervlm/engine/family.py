"""The contract between the engine and model families: which tokens are visual, their grids, and the encoder's features.

Families implement `Family` in `feathervlm.families`; the engine imports none of them.
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
from feathervlm.engine.rotary import RotaryRules


class Family(RotaryRules, ABC):
    """Geometry, features and quirks of a kind of model.

    Args:
        model: A transformers model of this kind.

    Attributes:
        rotary: The rules of the model's text part, which another family may know.
    """

    title: ClassVar[str] = ""
    """Common name of these models."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """`config.model_type` of the models."""
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    """Inputs that the models take: "image", "video"."""
    geometry: ClassVar[str] = "one square grid"
    """Description of a picture's grids, in a few words."""
    decoder: ClassVar[str] = "full attention"
    """Description of what the decoder layers attend to, in a few words."""
    caches: ClassVar[tuple[str, ...]] = ("dynamic", "static")
    """Kinds of transformers cache that can be pruned."""
    limits: ClassVar[str] = ""
    """Description of what does not work, in a few words."""
    boxes: ClassVar[BoxFormat | None] = None
    """How the models are asked for a box and answer, never inherited; None where it is not documented."""
    crops: ClassVar[bool] = False
    """Whether processors of these models crop pictures or pad them, so that `shown` depends on the processor."""
    notes: ClassVar[tuple[str, ...]] = ()
    """Notes that every report should contain."""
    row_arguments: ClassVar[tuple[str, ...]] = ()
    """Names of decoder layer arguments of shape (batch, sequence) that have to follow the present rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.rotary: RotaryRules = self

    def __init_subclass__(cls) -> None:
        # A family that borrows another's geometry was trained on boxes of its own, if on any.
        cls.boxes = cls.__dict__.get("boxes")

    @property
    def injected(self) -> int:
        """The last layer after which the model adds to the hidden states of visual tokens; -1 if there is none."""
        return -1

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        """Return the part of a picture of `size` (width, height) that the model is shown, in pixels."""
        return 0.0, 0.0, float(size[0]), float(size[1])

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return what to remember of pixels that only the encoder gets to see.

        Args:
            modality: "image" or "video".
            arguments: Arguments of the encoder, by name.
        """
        return None

    @abstractmethod
    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        """Return the tensors that the images come in (pixels or features); empty if the call brings no image."""

    @abstractmethod
    def layout(self, call: ModelCall) -> VisualLayout:
        """Return the layout of a call that brings images.

        Raises:
            PruningError: If placeholders and images do not match.
        """

    def check(self, call: ModelCall, modality: str, output: Any) -> None:
        """Compare what the encoder returned during a call with the layout.

        Raises:
            PruningError: If they do not match.
        """
        return

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        """Return the encoder's patch features before the projector, of shape (batch, visual, dim).

        Raises:
            Unprunable: If they are not available.
        """
        raise Unprunable(
            "The vision encoder's features of this model are not known; use the projected ones (features=projected)."
        )

    def inside_encoder(self, call: ModelCall, layout: VisualLayout, signal: EncoderSignal) -> Tensor:
        """Return a signal from inside the encoder, the mean over each token's patches.

        Returns:
            Tensor of shape (batch, visual), or (batch, visual, dim) for keys.

        Raises:
            Unprunable: If it is not available.
        """
        raise Unprunable("The attention inside this model's vision encoder is not known; choose another method.")


class GivenLayout(Family):
    """A family for any decoder whose visual tokens the user points out.

    Args:
        model: A transformers model.
        given: The user's layout.
        known: The family that knows the model's other quirks, if there is one.
    """

    def __init__(self, model: PreTrainedModel, given: VisualLayout, known: Family | None = None) -> None:
        super().__init__(model)
        self.given, self.known = given, known
        if known is not None:
            self.shown = known.shown  # type: ignore[method-assign]

    @property
    def row_arguments(self) -> tuple[str, ...]:  # type: ignore[override]  # an instance's own
        return self.known.row_arguments if self.known else ()

    @property
    def crops(self) -> bool:  # type: ignore[override]  # an instance's own
        return self.known.crops if self.known else False

    @property
    def injected(self) -> int:
        return self.known.injected if self.known else -1

    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        return (call.tokens,) if self.given.width else ()

    def layout(self, call: ModelCall) -> VisualLayout:
        """Return the given layout, fitted to beams and to text that follows."""
        return self.given.to(call.tokens.device).fit(*call.shape)

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        raise Unprunable(
            "With layout= the vision encoder's features are not known; use the projected ones (knn:features=projected)."
        )
