"""OCID-Ref: objects in cluttered scenes, described by a sentence (arXiv 2103.07679, the validation split)."""

import json
from collections.abc import Iterator
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.localization import Localization

SIZE = (640, 480)
"""(width, height) of every picture of OCID."""


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
        for key, row in self.json("ocid-ref/val_expressions.json").items():
            yield Question(
                id=str(key),
                prompt=row["sentence"],
                image=f"ocid-ref/OCID-dataset/{row['scene_path']}",
                box=_box(key, row),
                split=_clutter(key, row["take_id"]),
            )


def _box(key: str, row: dict[str, Any]) -> Box:
    left, top, right, bottom = map(float, json.loads(row["bbox"]))
    if not (0 <= left < right <= SIZE[0] and 0 <= top < bottom <= SIZE[1]):
        raise PruningError(
            f"bbox={row['bbox']} of sentence {key} of OCID-Ref is not left, top, right, bottom in 640 x 480 pixels; "
            "get the file again."
        )
    return left, top, right, bottom


def _clutter(key: str, take: Any) -> str:
    """Return the amount of clutter: takes 0 to 9 have the first objects, 17 to 20 the last."""
    number = int(take)
    if not 0 <= number <= 20:
        raise PruningError(f"take_id={take!r} of sentence {key} of OCID-Ref is not 0 to 20; get the file again.")
    return "minimum" if number <= 9 else "medium" if number <= 16 else "maximum"
