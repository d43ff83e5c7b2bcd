"""Which part of a picture a processor shows the model."""

from typing import Any

from feathervlm.core.layout import Box


def center_crop(processor: Any, size: tuple[int, int]) -> Box:
    """Return the box, in pixels, of what a processor like CLIP's cuts out of a picture.

    Such a processor resizes the picture, then crops its center, or resizes it to a square and crops nothing.

    Args:
        processor: A processor or an image processor.
        size: (width, height) of the picture.
    """
    images = getattr(processor, "image_processor", processor)
    width, height = size
    if not getattr(images, "do_center_crop", False):
        return 0.0, 0.0, float(width), float(height)
    crop, resized = images.crop_size, images.size
    shortest = resized.get("shortest_edge")
    if shortest is None:
        scale_x, scale_y = width / resized["width"], height / resized["height"]
    else:
        scale_x = scale_y = min(width, height) / shortest
    crop_width, crop_height = crop["width"] * scale_x, crop["height"] * scale_y
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def padded_square(size: tuple[int, int]) -> Box:
    """Return the box, in pixels, of the square that a picture of `size` (width, height) is centered in."""
    side = max(size)
    left, top = -((side - size[0]) // 2), -((side - size[1]) // 2)
    return float(left), float(top), float(left + side), float(top + side)


def pads(processor: Any) -> bool:
    """Whether a processor pads pictures, as its `do_pad` says."""
    return bool(getattr(getattr(processor, "image_processor", processor), "do_pad", False))
