"""Reads the boxes in the answers of a model, for whatever scores or draws them."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from feathervlm.core.boxes import BoxFormat, Size
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.engine.family import Family
from feathervlm.families.registry import family_of


@dataclass(frozen=True, eq=False)
class BoxReader:
    """Reads the boxes in the answers of a model.

    Attributes:
        family: Family of the model.
        processor: Its processor.
        format: Format in which it writes boxes; None if it is not known.
    """

    family: type[Family]
    processor: Any
    format: BoxFormat | None
    _resized: dict[Size, Size] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, loaded: Any) -> "BoxReader":
        """Return the reader of a `LoadedModel`."""
        return cls(family_of(loaded.model), loaded.processor, loaded.boxes)

    def read(self, answer: str, size: Size) -> Box | None:
        """Return the box that an answer names, in pixels of the picture; None if it is invalid.

        Args:
            answer: Answer of the model.
            size: (width, height) of the picture in pixels.

        Raises:
            PruningError: The format of the boxes is not known, or the size of the resized picture is needed and not
                known.
        """
        if self.format is None:
            raise PruningError(
                f"It is not known how {self.family.title} writes boxes, so the answer {answer[:80]!r} cannot be read; "
                "leave questions with a box out."
            )
        resized = self.resized(size) if self.format.scale is None else None
        # The shown part is passed even where it is the whole picture: a format of squares would else assume padding.
        return self.format.read(answer, size, resized, self.shown(size))

    def shown(self, size: Size) -> Box:
        """Return the part of a picture that the model is shown, in pixels."""
        return self.family.shown(self.processor, size)

    def counts(self, size: Size) -> bool:
        """Return whether it is known in which pixels the model counts, if it counts pixels.

        Args:
            size: (width, height) of a picture in pixels.
        """
        try:
            return self.format is None or self.format.scale is not None or bool(self.resized(size))
        except PruningError:
            return False

    def resized(self, size: Size) -> Size:
        """Return (width, height) of a picture after the image processor has resized it.

        Raises:
            PruningError: The processor does not return that size.
        """
        if size not in self._resized:
            images = self.processor.image_processor
            grid = images(images=[Image.new("RGB", size)], return_tensors="pt").get("image_grid_thw")
            if grid is None:
                raise PruningError(
                    f"{type(images).__name__} does not tell how it resizes pictures, in whose pixels "
                    f"{self.family.title} counts; leave questions with a box out."
                )
            _, rows, cols = grid[0].tolist()
            self._resized[size] = cols * images.patch_size, rows * images.patch_size
        return self._resized[size]
