"""Prompts with pictures, and the inputs that a model takes for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from feathervlm.core.errors import PruningError
from feathervlm.inference.loading import brief


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


def open_picture(path: Path) -> Image.Image:
    """Open a picture as RGB, turned upright.

    Raises:
        PruningError: There is no picture at `path`.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise PruningError(f"There is no image file {path}; check the path.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PruningError(f"{path} cannot be read as an image ({brief(error)}); give a PNG or JPEG file.") from None


def has_template(processor: Any) -> bool:
    """Whether a processor has a chat template."""
    return bool(getattr(processor, "chat_template", None))


def image_marker(processor: Any) -> str:
    """Return the placeholder that stands for a picture in a prompt."""
    return str(getattr(processor, "image_token", None) or "<image>")


def check_markers(processor: Any, prompt: Prompt) -> None:
    """Refuse a prompt whose image placeholders do not match its pictures.

    Raises:
        PruningError: The text has placeholders beside a chat template, or too few or too many without one.
    """
    marker = image_marker(processor)
    count, expected = prompt.text.count(marker), len(prompt.images)
    if not has_template(processor) and count != expected:
        raise PruningError(
            f"The prompt has {count} of {expected} image placeholders {marker}; this model has no chat template, so "
            f"write {marker} once for each image."
        )
    if has_template(processor) and prompt.conversation is None and count:
        raise PruningError(
            f"The prompt holds the image placeholder {marker}, which the model's chat template adds by itself; "
            "leave it out."
        )


def prepare(processor: Any, prompts: Sequence[Prompt]) -> Any:
    """Return the inputs of a model for one prompt or several; several are padded on the left.

    Raises:
        PruningError: Image placeholders do not match the pictures, or several prompts meet a model without a chat
            template.
    """
    for prompt in prompts:
        check_markers(processor, prompt)
    if not has_template(processor):
        if len(prompts) > 1:
            raise PruningError(f"{len(prompts)} prompts at once need a chat template; give one prompt at a time.")
        return processor(images=list(prompts[0].images), text=prompts[0].text, return_tensors="pt")
    padding = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    chats = [prompt.messages for prompt in prompts]
    return processor.apply_chat_template(
        chats if len(chats) > 1 else chats[0],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={**padding, "return_tensors": "pt"},
    )
