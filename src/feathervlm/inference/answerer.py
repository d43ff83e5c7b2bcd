"""Who answers a study's questions: a model with its processor, and how its answers are read.

Knows how to ask and to read boxes, and what fits together; knows nothing of experiments, or of what a method does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from feathervlm.api import prune
from feathervlm.core.boxes import BoxFormat, Size
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.embedded.questions import BOXES
from feathervlm.embedded.vocabulary import check_words
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.evaluation.tasks.jsonl import JsonlData
from feathervlm.evaluation.tasks.study_data import Data, EmbeddedData, Item
from feathervlm.families import family_of
from feathervlm.inference import loading, prompts
from feathervlm.inference.compare import warn_of_missing
from feathervlm.inference.model_spec import UNPRUNED, Wanted, fingerprint, is_embedded
from feathervlm.utils.provenance import versions


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that answers and whose answers can be graded.

    Attributes:
        model: ready to answer.
        processor: its own.
        boxes: how it writes boxes; None if it is asked for none.
        max_new_tokens: per answer.
        batch: how many questions are best asked at once.
    """

    model: Any
    processor: Any
    boxes: BoxFormat | None
    max_new_tokens: int
    batch: int = 1
    _resized: dict[Size, Size] = field(default_factory=dict, repr=False)

    @property
    def family(self) -> type[Family]:
        """That of the model."""
        return family_of(self.model)

    def answer(self, items: Sequence[Item]) -> list[str]:
        """What the model answers, greedily: all at once where it has a chat template, else one by one.

        Raises:
            PruningError: if a prompt's image placeholders do not match its one picture.
        """
        with loading.quiet():
            if len(items) > 1 and getattr(self.processor, "chat_template", None):
                return self.generate(
                    prompts.prepare_all(self.processor, [(item.picture, item.prompt) for item in items])
                )
            inputs = (prompts.prepare(self.processor, item.prompt, [item.picture]) for item in items)
            return [text for one in inputs for text in self.generate(one)]

    def generate(self, inputs: Any) -> list[str]:
        """What the model answers to prepared inputs."""
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def read(self, item: Item, answer: str) -> Box | None:
        """The box that an answer to a question names, in pixels of its picture; None if it is invalid.

        Raises:
            PruningError: if it is not known how the model writes boxes.
        """
        if self.boxes is None:
            raise PruningError(f"It is not known how {self.family.title} writes boxes, as question {item.id!r} needs.")
        size = item.picture.size
        shown = self.resized(size) if self.boxes.scale is None else None
        # Said even where it is the whole picture: else a square format would take a squeezed picture for a padded one.
        return self.boxes.read(answer, size, shown, self.family.shown(self.processor, size))

    def grade(self, item: Item, answer: str) -> tuple[bool, float | None]:
        """Whether an answer is right and, for localization, its IoU with the true box."""
        return item.grade(answer, lambda text: self.read(item, text))

    def resized(self, size: Size) -> Size:
        """(width, height) of a picture of that size as the image processor passes it on.

        Raises:
            PruningError: if the processor does not tell.
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


def load(wanted: Wanted, data: Data) -> Subject:
    """The model, ready to answer the questions of a data set.

    Raises:
        PruningError: if it cannot be loaded, or it is not known how it writes the boxes that are asked for.
    """
    found = load_for(wanted)
    return replace(found, boxes=_boxes(data, found.model, is_embedded(found.processor)))


def load_for(wanted: Wanted) -> Subject:
    """The model, ready to answer anything but where something is.

    Raises:
        PruningError: if it cannot be loaded.
    """
    with loading.quiet():
        processor = loading.load_processor(wanted.place)
        device, dtype, longest, batch = wanted.settled(is_embedded(processor))
        model, missing = loading.load_model(wanted.place, dtype, wanted.attention)
    warn_of_missing(wanted.model, missing)
    return Subject(model.to(device), processor, None, longest, batch)


def check(wanted: Wanted, data: Data, methods: Sequence[str]) -> None:
    """Refuse what cannot work before weights are read.

    Args:
        wanted: who is to answer.
        data: what is to be asked.
        methods: specs, or `UNPRUNED`.

    Raises:
        PruningError: if model, data, methods or settings do not fit together; it says which.
    """
    with loading.quiet():
        model = loading.empty_model(loading.load_config(wanted.place), wanted.attention)
        processor = loading.load_processor(wanted.place)
    embedded = is_embedded(processor)
    *_, batch = wanted.settled(embedded)
    if isinstance(data, EmbeddedData) and not embedded:
        raise PruningError(
            f"The embedded questions are answered in <loc00> to <loc31> tokens, which {wanted.model} does not have; "
            "give --data FILE.jsonl."
        )
    if batch > 1 and not getattr(processor, "chat_template", None):
        raise PruningError(f"batch={batch} needs a chat template, which {wanted.model} lacks; leave it at 1.")
    if batch > 1 and processor.tokenizer.pad_token is None:
        raise PruningError(f"batch={batch} needs a padding token, which {wanted.model} lacks; leave it at 1.")
    _boxes(data, model, embedded)
    if isinstance(data, JsonlData):
        _check_prompts(data, processor, embedded)
    for spec in methods:
        if spec != UNPRUNED:
            prune(model, spec).remove()


def _boxes(data: Data, model: PreTrainedModel, embedded: bool) -> BoxFormat | None:
    """How a model answers the localization questions of a data set; None if there are none."""
    if "localization" not in data.kinds.values():
        return None
    # The embedded kind is a LLaVA by its classes, but was not trained to write boxes as LLaVA does.
    boxes = data.boxes or (BOXES if embedded else family_of(model).boxes)
    if boxes is None:
        raise PruningError(
            f"It is not documented how a {model.config.model_type} writes boxes, so {data.name} cannot be graded; "
            "leave questions with a box out, or choose a family with a box format (`feathervlm models`)."
        )
    return boxes


def _check_prompts(data: JsonlData, processor: Any, embedded: bool) -> None:
    """Whether the model's processor takes every prompt, and the embedded model knows its words."""
    marker = str(getattr(processor, "image_token", None) or "<image>")
    expected = 0 if getattr(processor, "chat_template", None) else 1
    for row in data.rows:
        try:
            if row.prompt.count(marker) != expected:
                prompts.prepare(processor, row.prompt, [Image.new("RGB", (8, 8))])
            if embedded:
                check_words(processor, [row.prompt])
        except PruningError as error:
            raise PruningError(f"Question {row.id!r} of {data.name}: {error}") from None


def describe(wanted: Wanted) -> dict[str, Any]:
    """What answers depend on besides questions and methods, as plain values: for provenance, and to tell runs apart.

    Raises:
        PruningError: if there is no such model, or what it holds cannot be told.
    """
    with loading.quiet():
        config = loading.load_config(wanted.place)
        embedded = is_embedded(loading.load_processor(wanted.place))
        depth = len(DecoderView(loading.empty_model(config, wanted.attention)).layers)
    device, dtype, longest, batch = wanted.settled(embedded)
    return {
        "name": wanted.model,
        "fingerprint": fingerprint(wanted.place),
        "model_type": config.model_type,
        "embedded": embedded,
        "depth": depth,
        "device": str(device),
        "dtype": str(_stored(config) if dtype == "auto" else dtype).removeprefix("torch."),
        "attention": wanted.attention,
        "max_new_tokens": longest,
        "batch": batch,
        "versions": versions(),
    }


def _stored(config: PreTrainedConfig) -> torch.dtype | str:
    """The type that a config says its weights are stored in; transformers looks at them where it says nothing."""
    return config.dtype or "as stored"
