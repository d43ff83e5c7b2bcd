"""RefCOCO, RefCOCO+, RefCOCOg: objects that a phrase refers to (arXiv 1608.00272, 1511.02283, validation splits)."""

import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.localization import Localization


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
        boxes = {row["id"]: row["bbox"] for row in self.json(f"{folder}/instances.json")["annotations"]}
        for ref in self._refs(f"{folder}/{self.refs}"):
            if ref["split"] != "val":
                continue
            left, top, width, height = map(float, boxes[ref["ann_id"]])
            for sentence in ref["sentences"]:
                yield Question(
                    id=f"{ref['ref_id']:06d}-{sentence['sent_id']:06d}",
                    prompt=sentence["sent"],
                    image=f"coco/train2014/COCO_train2014_{ref['image_id']:012d}.jpg",
                    box=(left, top, left + width, top + height),
                )

    def _refs(self, name: str) -> list[dict[str, Any]]:
        path = self.data / name
        try:
            with path.open("rb") as file:
                found: list[dict[str, Any]] = Plain(file, encoding="latin-1").load()
        except FileNotFoundError:
            raise self.missing(path) from None
        except (OSError, pickle.UnpicklingError, EOFError, ValueError) as error:
            raise PruningError(f"{path} is not the file of phrases ({error}); get it again.") from None
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
