"""RefCOCO, RefCOCO+, RefCOCOg: objects that a phrase refers to (arXiv 1608.00272, 1511.02283, validation splits)."""

import pickle
from collections.abc import Iterator
from io import BytesIO
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, TypeAdapter, ValidationError

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.localization import Localization
from feathervlm.utils.files import brief
from feathervlm.utils.schema import Four, Number, problems, record, records


def _corners(value: list[float]) -> Box:
    left, top, width, height = value
    if min(left, top) < 0 or min(width, height) <= 0:
        raise ValueError(f"bbox={value} is not left, top, width, height of a box in a picture")
    return left, top, left + width, top + height


INSTANCES = record(annotations=records(record(id=Number, bbox=Annotated[Four, AfterValidator(_corners)])))
PHRASES = records(record(sent_id=Number, sent=str))
REFERENCES = records(record(ref_id=Number, ann_id=Number, image_id=Number, split=str, sentences=PHRASES))


class Plain(pickle.Unpickler):
    """An unpickler of numbers, texts, lists and dictionaries that runs none of the code a pickle may hold."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class."""
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


class Referring(Localization):
    """One question per phrase, right from an IoU of 0.5."""

    refs: ClassVar[str]

    def read(self) -> Iterator[Question]:
        folder = f"refcoco/{self.name}"
        boxes = {one.id: one.bbox for one in self.rows(f"{folder}/instances.json", INSTANCES).annotations}
        for ref in self._refs(f"{folder}/{self.refs}"):
            if ref.split != "val":
                continue
            if ref.ann_id not in boxes:
                raise self.broken(f"{folder}/instances.json", [f"it lacks {ref.ann_id} of phrase {ref.ref_id}"])
            for sentence in ref.sentences:
                yield Question(
                    id=f"{ref.ref_id:06d}-{sentence.sent_id:06d}",
                    prompt=sentence.sent,
                    image=f"coco/train2014/COCO_train2014_{ref.image_id:012d}.jpg",
                    box=boxes[ref.ann_id],
                )

    def _refs(self, name: str) -> list[Any]:
        content = self.content(name)
        try:
            found: list[Any] = TypeAdapter(REFERENCES).validate_python(
                Plain(BytesIO(content), encoding="latin-1").load()
            )
        except ValidationError as error:
            raise self.broken(name, problems(error)) from None
        except Exception as error:  # a damaged pickle runs into anything
            path = self.data / name
            raise PruningError(f"{path} is not the file of phrases ({brief(error)}); {self.fetch}.") from None
        return found


def _fetch(archive: str, name: str, refs: str) -> str:
    return (
        f"unpack {archive} (github.com/lichengunc/refer) so that there are refcoco/{name}/{refs} and "
        f"refcoco/{name}/instances.json, and train2014.zip (cocodataset.org) so that there is coco/train2014"
    )


class RefCOCO(Referring):
    """Short phrases from a game."""

    name = "refcoco"
    title = "RefCOCO"
    refs = "refs(unc).p"
    count = 10834
    fetch = _fetch("refcoco.zip", "refcoco", "refs(unc).p")


class RefCOCOPlus(Referring):
    """Phrases from the same game without words for places."""

    name = "refcoco+"
    title = "RefCOCO+"
    refs = "refs(unc).p"
    count = 10758
    fetch = _fetch("refcoco+.zip", "refcoco+", "refs(unc).p")


class RefCOCOg(Referring):
    """Longer phrases that were written without a game; the split of UMD."""

    name = "refcocog"
    title = "RefCOCOg"
    refs = "refs(umd).p"
    count = 4896
    fetch = _fetch("refcocog.zip", "refcocog", "refs(umd).p")
