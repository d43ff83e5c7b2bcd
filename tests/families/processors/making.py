"""Parts of the processors of the tests: a tokenizer of words, and stand-ins for processors that need torchvision."""

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import interpolate
from transformers import AddedToken, PreTrainedTokenizerFast

import tiny_models as tiny
from family_cases import FAMILY_CASES


def tokenizer(**special):
    """A tokenizer of words, whose special tokens have the given ids: name=(text, id)."""
    texts = {number: text for text, number in special.values()}
    words = {texts.get(number, f"word{number}"): number for number in range(tiny.VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="word5"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="word0",
        bos_token="word1",
        eos_token="word2",
        extra_special_tokens={name: text for name, (text, _) in special.items()},
        padding_side="left",
    )
    made.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(text, special=True, normalized=False) for text, _ in special.values()
            ]
        }
    )
    assert all(made.convert_tokens_to_ids(text) == number for text, number in special.values())
    return made


def without_video(cls):
    """The processor class without the part that needs torchvision, which no picture passes through."""

    class Quiet(cls):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                super().check_argument_for_proper_class(argument_name, argument)

    return Quiet


class ByHand:
    """Stands in for a processor that needs torchvision: as its code says, from a picture to a `PictureInput`."""

    image_token, do_pad = "<image>", False

    def __init__(self, name, picture):
        self.name, self.picture = name, picture

    def __call__(self, images, text, return_tensors):
        pictures = [self.picture(self.pixels(image)) for image in images]
        ids = [1, 7, *(token for picture in pictures for token in (*picture.ids, 9)), 8, 9]
        return FAMILY_CASES[self.name].inputs((ids, pictures))

    def pixels(self, image):
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 128 - 1).permute(2, 0, 1)


def squeezed(pixels, high, wide):
    return interpolate(pixels[None], (high, wide), mode="bilinear", antialias=True)[0]


def cut(pixels, side=48, most=6):
    """Rows and columns of tiles near the picture's shape, its tiles, and the overview."""
    shapes = [(rows, cols) for rows in range(1, most) for cols in range(1, most) if rows * cols <= most]
    ratio = pixels.shape[1] / pixels.shape[2]
    rows, cols = min(shapes, key=lambda shape: (abs(np.log(shape[0] / shape[1] / ratio)), shape))
    whole = F.interpolate(pixels[None], (rows * side, cols * side), mode="bilinear", antialias=True)[0]
    parts = whole.unflatten(1, (rows, side)).unflatten(3, (cols, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    overview = F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)
    return rows, cols, torch.cat([parts, overview]) if rows * cols > 1 else overview


class WithArguments:
    """A processor that wants more than a picture's token, or more arguments."""

    def __init__(self, inner, image_token, **more):
        self.inner, self.image_token, self.more = inner, image_token, more

    def __call__(self, **given):
        return self.inner(**given, **self.more)
