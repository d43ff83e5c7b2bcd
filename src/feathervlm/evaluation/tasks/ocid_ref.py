"""OCID-Ref: objects in cluttered scenes, described by a sentence (arXiv 2103.07679, the validation split)."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.localization import Localization
from feathervlm.utils.schema import Four, Text, record, records_by_name

SIZE = (640, 480)
"""(width, height) of every picture of OCID."""


_FOUR = TypeAdapter(Four, config=ConfigDict(strict=True, allow_inf_nan=False))


def _corners(value: Any) -> Box:
    read = _FOUR.validate_json if isinstance(value, str) else _FOUR.validate_python
    try:
        left, top, right, bottom = read(value)
    except ValidationError:
        left = top = right = bottom = 0.0  # which is refused as well
    if not (0 <= left < right <= SIZE[0] and 0 <= top < bottom <= SIZE[1]):
        raise ValueError(f"bbox={value!r} is not left, top, right, bottom in {SIZE[0]} x {SIZE[1]} pixels")
    return left, top, right, bottom


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


TAKE = Annotated[int, Field(ge=0, le=20), BeforeValidator(_number)]
SENTENCES = records_by_name(
    record(sentence=Text, scene_path=Text, bbox=Annotated[Any, BeforeValidator(_corners)], take_id=TAKE)
)


class OCIDRef(Localization):
    """Boxes in scenes that fill up, right from an IoU of 0.25; the splits are amounts of clutter.

    The published description calls a box x, y, width, height; the file holds, and the harness of the paper reads, left,
    top, right, bottom. Rows that cannot be such a box are refused.
    """

    name = "ocid-ref"
    title = "OCID-Ref"
    threshold = 0.25
    count = 18342
    fetch = (
        "put val_expressions.json of OCID-Ref (github.com/lluma/OCID-Ref, the folder linked in its README) at "
        "ocid-ref/val_expressions.json, and unpack OCID-dataset.tar.gz (TU Wien, pcbjd-4wa12) so that there is "
        "ocid-ref/OCID-dataset"
    )

    def read(self) -> Iterator[Question]:
        for key, row in self.rows("ocid-ref/val_expressions.json", SENTENCES).items():
            yield Question(
                id=key,
                prompt=row.sentence,
                image=f"ocid-ref/OCID-dataset/{row.scene_path}",
                box=row.bbox,
                # Takes 0 to 9 have the first objects, 17 to 20 the last.
                split="minimum" if row.take_id <= 9 else "medium" if row.take_id <= 16 else "maximum",
            )
