"""Prompts: one picture or several, placeholders, conversations, files."""

import pytest
from PIL import Image

from feathervlm import PruningError, embedded
from feathervlm.inference.prompts import Prompt, prepare
from feathervlm.utils.pictures import open_picture


@pytest.fixture(scope="module")
def processor():
    return embedded.load()[1]


def test_one_picture_and_two(processor):
    picture = Image.new("RGB", (128, 128), "red")
    one, two = (prepare(processor, [Prompt("what is the background ?", (picture,) * count)]) for count in (1, 2))
    assert one["pixel_values"].shape[0] == 1
    assert two["pixel_values"].shape[0] == 2
    assert two["input_ids"].shape[1] - one["input_ids"].shape[1] == 256


def test_a_conversation_is_taken_as_it_is(processor):
    picture = Image.new("RGB", (128, 128), "red")
    prompt = Prompt("what is the background ?", (picture,))
    other = Prompt("", (picture,), prompt.messages)
    ours, theirs = (prepare(processor, [one]) for one in (prompt, other))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()


def test_a_placeholder_beside_the_template_is_refused(processor):
    with pytest.raises(PruningError, match="holds the image placeholder <image>"):
        prepare(processor, [Prompt("<image> where is the circle ?", (Image.new("RGB", (8, 8)),))])


def test_pictures_are_opened_upright(tmp_path):
    picture = Image.new("RGBA", (40, 30))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    opened = open_picture(tmp_path / "turned.png")
    assert (opened.size, opened.mode) == ((30, 40), "RGB")
    (tmp_path / "broken.png").write_text("no picture")
    for name, reason in (("broken.png", "cannot be read as an image"), ("none.png", "There is no image file")):
        with pytest.raises(PruningError, match=reason):
            open_picture(tmp_path / name)
