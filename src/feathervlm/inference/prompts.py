"""Prompts with pictures, and the inputs that a model takes for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.embedded.vocabulary import check_words
from feathervlm.inference.model_spec import is_embedded
from feathervlm.utils.files import brief
from feathervlm.utils.pictures import opened_part


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text about pictures, or a whole conversation.

    Args:
        text: The question. Without a chat template it holds one image placeholder for each picture.
        images: The pictures, in order.
        conversation: Messages as the chat template takes them, with the pictures in them, in place of the text.
    """

    text: str
    images: tuple[Any, ...] = ()
    conversation: list[dict[str, Any]] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, which by default is one message with the pictures before the text."""
        if self.conversation is not None:
            return self.conversation
        pictures = [{"type": "image", "image": image} for image in self.images]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self.text}]}]

    @property
    def shows(self) -> bool:
        """Whether there is a picture."""
        return any(part.get("type") == "image" for message in self.messages for part in _parts(message))

    def opened(self) -> list[dict[str, Any]]:
        """Return the messages with every picture opened and made RGB, whether it is in memory or a local file.

        Raises:
            PruningError: A picture cannot be read.
        """
        return [
            message | {"content": [opened_part(part) for part in _parts(message)]} if _parts(message) else message
            for message in self.messages
        ]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def has_template(processor: Any) -> bool:
    """Whether a processor has a chat template."""
    return bool(getattr(processor, "chat_template", None))


def image_marker(processor: Any) -> str:
    """Return the placeholder that stands for a picture in a prompt."""
    return str(getattr(processor, "image_token", None) or "<image>")


def check_prompt(processor: Any, text: str, pictures: int = 1) -> None:
    """Refuse a text that a model cannot be asked.

    Args:
        processor: Processor of the model.
        text: The text of a prompt.
        pictures: Number of its pictures.

    Raises:
        PruningError: The text has placeholders beside a chat template, too few or too many without one, or words that
            the embedded model does not know.
    """
    marker = image_marker(processor)
    count = text.count(marker)
    if not has_template(processor) and count != pictures:
        raise PruningError(
            f"The prompt has {count} of {pictures} image placeholders {marker}; this model has no chat template, so "
            f"write {marker} once for each image."
        )
    if has_template(processor) and count:
        raise PruningError(
            f"The prompt holds the image placeholder {marker}, which the model's chat template adds by itself; "
            "leave it out."
        )
    if is_embedded(processor):
        check_words(processor, [text])


def prepare(processor: Any, prompts: Sequence[Prompt]) -> Any:
    """Return the inputs of a model for one prompt or several; several are padded on the left.

    Raises:
        PruningError: A text or a picture does not fit the model, or several prompts meet one without a chat template.
    """
    for prompt in prompts:
        if prompt.conversation is None:
            check_prompt(processor, prompt.text, len(prompt.images))
    if len(prompts) > 1 and not has_template(processor):
        raise PruningError(f"{len(prompts)} prompts at once need a chat template; give one prompt at a time.")
    chats = [prompt.opened() for prompt in prompts]
    try:
        if not has_template(processor):
            images = [one["image"] for one in chats[0][0]["content"] if one["type"] == "image"]
            return processor(images=images, text=prompts[0].text, return_tensors="pt")
        padding = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
        return processor.apply_chat_template(
            chats if len(chats) > 1 else chats[0],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={**padding, "return_tensors": "pt"},
        )
    except Exception as error:
        # A broken chat template raises errors of Jinja, which transformers imports when it is needed.
        if not isinstance(error, ValueError) and not type(error).__module__.startswith("jinja2"):
            raise
        name = type(processor).__name__
        raise PruningError(
            f"{name} does not take these pictures and this text ({brief(error)}); give others."
        ) from error
