"""A model with its processor that continues conversations about pictures: in batches, greedily, or by a choice.

Knows transformers' processors and how families are asked for boxes; knows neither lmms-eval nor any method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import BOXES
from feathervlm.embedded.vocabulary import check_words
from feathervlm.evaluation.tasks.study_data import Item
from feathervlm.families import family_of
from feathervlm.inference import loading, prompts
from feathervlm.inference.answerer import Subject
from feathervlm.inference.choices import choose, first_tokens
from feathervlm.inference.compare import warn_of_missing
from feathervlm.inference.model_spec import Wanted, is_embedded
from feathervlm.integrations.lmms_eval.arguments import Generation
from feathervlm.integrations.lmms_eval.scoring import write_fractions
from feathervlm.methods import Method

NO_BOX = "no box"
"""The answer to a question for a box that names none."""


@dataclass(frozen=True, eq=False)
class Chat:
    """A conversation to be continued.

    Attributes:
        messages: as the chat template takes them.
        pictures: in it, in order.
        item: whose box is asked for, if one is.
    """

    messages: list[dict[str, Any]]
    pictures: list[Any]
    item: Item | None = None


@dataclass(frozen=True, eq=False)
class Written:
    """The continuations of a batch: texts, and for each the tokens read and written."""

    texts: list[str]
    read: list[int]
    written: list[int]


@dataclass(frozen=True, eq=False)
class Writer:
    """A model that is loaded.

    Attributes:
        model: ready to answer.
        processor: its own.
        subject: reads its boxes.
        embedded: whether it is of the embedded kind, which knows few words.
    """

    model: Any
    processor: Any
    subject: Subject
    embedded: bool

    @classmethod
    def load(cls, wanted: Wanted, method: Method | None, batch: int) -> Self:
        """The model, once it is clear that it can be asked, and pruned.

        Raises:
            PruningError: if it cannot, or not in such batches.
        """
        with loading.quiet():
            empty = loading.empty_model(loading.load_config(wanted.place), wanted.attention)
            if method is not None:
                prune(empty, method).remove()  # what cannot be pruned should not wait for its weights
            processor = loading.load_processor(wanted.place)
            if not getattr(processor, "chat_template", None):
                raise PruningError(
                    f"{wanted.model} has no chat template, through which questions are put; choose one with it."
                )
            if batch > 1 and processor.tokenizer.pad_token is None:
                raise PruningError(
                    f"batch_size={batch} needs a padding token, which {wanted.model} lacks; leave it at 1."
                )
            embedded = is_embedded(processor)
            device, dtype, *_ = wanted.settled(embedded)
            model, missing = loading.load_model(wanted.place, dtype, wanted.attention)
        warn_of_missing(wanted.model, missing)
        model.to(device)
        boxes = BOXES if embedded else family_of(model).boxes
        return cls(model, processor, Subject(model, processor, boxes, 0), embedded)

    def chat(self, name: str, messages: list[dict[str, Any]], pictures: list[Any], located: str | None) -> Chat:
        """A conversation, or in its place the question for a box as the model's family is asked.

        Args:
            name: of the question, for errors.
            messages: as the chat template takes them.
            pictures: in them, in order.
            located: what to locate, if the family is to be asked in its own way.

        Raises:
            PruningError: if it is not known how the family writes boxes, or the embedded model lacks a word.
        """
        item = None
        if located is not None:
            item = self._item(name, located, pictures)
            content = [{"type": "image", "image": item.picture}, {"type": "text", "text": item.prompt}]
            messages = [{"role": "user", "content": content}]
        if self.embedded:
            parts = [part for message in messages for part in message["content"]]
            check_words(self.processor, [part["text"] for part in parts if part["type"] == "text"])
        return Chat(messages, pictures, item)

    def _item(self, name: str, description: str, pictures: list[Any]) -> Item:
        if self.subject.boxes is None:
            raise PruningError(
                f"It is not documented how a {self.model.config.model_type} writes boxes, as {name} asks for; add "
                "boxes=task to --model_args to ask in the task's own words."
            )
        if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
            raise PruningError(f"{name} asks for a box in {len(pictures)} pictures; it takes one, opened.")
        return Item(name, name, self.subject.boxes.ask(description), pictures[0])

    def place(self, item: Item, text: str) -> str:
        """The box that an answer names as fractions of the picture, or `NO_BOX`."""
        box = self.subject.read(item, text)
        return NO_BOX if box is None else write_fractions(box, item.picture.size)

    def write(self, chats: Sequence[Chat], wish: Generation) -> Written:
        """What the model writes, or which choice it prefers.

        Raises:
            PruningError: if a choice is not one token of its own.
        """
        with loading.quiet(), torch.inference_mode():
            inputs = prompts.prepare_chats(self.processor, [chat.messages for chat in chats])
            inputs = inputs.to(self.model.device, dtype=self.model.dtype)
            output = self.model.generate(
                **inputs,
                max_new_tokens=1 if wish.choices else wish.max_new_tokens,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_logits=bool(wish.choices),
            )
        read = inputs["attention_mask"].sum(1).tolist()
        if wish.choices:
            prompt = self.processor.apply_chat_template(chats[0].messages, tokenize=False, add_generation_prompt=True)
            best = choose(output.logits[0], first_tokens(self.processor.tokenizer, prompt, wish.choices))
            return Written([wish.choices[i] for i in best], read, [1] * len(chats))
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return Written(list(map(wish.cut, texts)), read, [_length(row, ends) for row in new.tolist()])


def _length(tokens: list[int], ends: set[int]) -> int:
    """Tokens of an answer with the one that ends it, without the filling behind."""
    return next((number for number, token in enumerate(tokens, 1) if token in ends), len(tokens))
