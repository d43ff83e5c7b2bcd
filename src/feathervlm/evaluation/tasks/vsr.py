"""VSR: statements about the places of two objects (arXiv 2205.00363, the zero-shot test split)."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import StringConstraints

from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.choice import Choice
from feathervlm.utils.schema import Flag, Text, record

LINE = record(
    image=Text,
    image_link=Annotated[str, StringConstraints(pattern=r"/(train|val)2017/[^/]+$")],
    caption=Text,
    label=Flag,
)
FLAT_LINE = record(image=Text, caption=Text, label=Flag)


class VSR(Choice):
    """Statements, true or false."""

    name = "vsr"
    title = "VSR"
    count = 1222
    fetch = (
        "put test.jsonl of the dataset cambridgeltl/vsr_zeroshot at vsr/test.jsonl, and the pictures of COCO 2017 in "
        "coco/train2017 and coco/val2017, or the authors' own archive of them in vsr/images"
    )

    def read(self) -> Iterator[Question]:
        flat = (self.data / "vsr/images").is_dir()
        for number, line in enumerate(self.lines("vsr/test.jsonl", FLAT_LINE if flat else LINE)):
            folder = "vsr/images" if flat else f"coco/{line.image_link.split('/')[-2]}"
            yield Question(
                id=f"{number:05d}",
                prompt=(
                    f'Based on the image, is this statement "True" or "False"? {line.caption}\n'
                    'Respond with "True" or "False" directly.'
                ),
                image=f"{folder}/{line.image}",
                target=1 - line.label,
                choices=("True", "False"),
            )
