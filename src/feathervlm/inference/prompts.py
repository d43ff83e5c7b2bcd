"""From pictures and a prompt to the inputs of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from feathervlm.core.errors import PruningError
from feathervlm.inference.loading import brief


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB and upright.

    Raises:
        PruningError: if there is no picture at `path`.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise PruningError(f"There is no image file {path}; check the path.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PruningError(f"{path} cannot be read as an image ({brief(error)}); give a PNG or JPEG file.") from None


def prepare(processor: Any, prompt: str, pictures: Sequence[Image.Image]) -> Any:
    """The model's inputs for one prompt about some pictures.

    Raises:
        PruningError: if the prompt's placeholders do not match the pictures.
    """
    marker = str(getattr(processor, "image_token", None) or "<image>")
    found, images = prompt.count(marker), list(pictures)
    if getattr(processor, "chat_template", None):
        if found:
            raise PruningError(
                f"The prompt holds the image placeholder {marker}, which the model's chat template adds by itself; "
                "leave it out."
            )
        content = [{"type": "image", "image": picture} for picture in images] + [{"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    if found != len(images):
        raise PruningError(
            f"The prompt has {found} of {len(images)} image placeholders {marker}; this model has no chat template, so "
            f"write {marker} once for each image."
        )
    return processor(images=images, text=prompt, return_tensors="pt")


def prepare_all(processor: Any, asked: Sequence[tuple[Image.Image, str]]) -> Any:
    """The model's inputs for several questions about a picture each, through the chat template, padded on the left."""
    return prepare_chats(
        processor,
        [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]}]
            for picture, prompt in asked
        ],
    )


def prepare_chats(processor: Any, chats: Sequence[list[dict[str, Any]]]) -> Any:
    """The model's inputs for several conversations as the chat template takes them, padded on the left."""
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
    )
