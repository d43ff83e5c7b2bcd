"""Pictures that visitors give: checked, kept by their content, and refused in one sentence."""

import numpy as np
import pytest
from PIL import Image

from feathervlm import PruningError
from feathervlm.app import picture_store
from feathervlm.app.picture_store import EXAMPLES, PictureStore
from feathervlm.embedded.tasks import HELD_OUT, sample


def saved(path, size=(30, 20), **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path, **options)
    return path


def test_a_picture_is_found_again_by_its_content(store, tmp_path):
    path = saved(tmp_path / "a cat.png")
    stored = store.add(path, "C:/pictures/a cat.png")
    path.unlink()
    again = store.get(stored.key)
    assert (again.name, again.key, again.question) == ("a cat.png", stored.key, None)
    assert np.array_equal(np.asarray(again.picture), np.asarray(stored.picture))


def test_pictures_open_as_in_every_command(store, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    assert store.add(saved(tmp_path / "turned.jpg", exif=exif)).picture.size == (20, 30)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    black = PictureStore(tmp_path, "black")
    assert store.add(tmp_path / "clear.png").picture.getpixel((0, 0)) == (255, 255, 255)
    assert black.add(tmp_path / "clear.png").picture.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["../../etc/passwd.png", "<script>.png", "a'b\"c.png", "", "\udcff.png", "/"])
def test_names_are_harmless(store, tmp_path, name):
    stored = store.add(saved(tmp_path / "x.png"), name)
    assert stored.name
    assert not set(stored.name) & set("/\\<>'\"")
    stored.name.encode()


def test_what_is_no_picture_is_one_sentence(store, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(PruningError, match=r"^text\.png .*\.$"):
        store.add(tmp_path / "text.png")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    with pytest.raises(PruningError, match=r"drawing\.svg"):
        store.add(tmp_path / "drawing.svg")
    assert store._names == {}


def test_limits_are_said(store, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_store, "MEGAPIXELS", 0.0005)
    with pytest.raises(PruningError, match=r"30 x 20 pixels, and 0\.0005 million pixels is the limit of this page"):
        store.add(saved(tmp_path / "x.png"))
    monkeypatch.setattr(picture_store, "MEGABYTES", 0)
    with pytest.raises(PruningError, match="0 MB is the limit of this page; scale it down"):
        store.add(tmp_path / "x.png")


def test_the_oldest_picture_leaves_first(store, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_store, "STORED", 2)
    keys = [store.add(saved(tmp_path / f"{n}.png", (10 + n, 10))).key for n in range(2)]
    store.add(tmp_path / "0.png")  # is the newest now
    store.add(saved(tmp_path / "2.png", (12, 10)))
    assert store.get(keys[0]).name == "0.png"
    with pytest.raises(PruningError, match="not on this page any more; upload it again"):
        store.get(keys[1])
    assert not (tmp_path / keys[1]).exists()


@pytest.mark.parametrize("key", ["nothing", "locate-", "locate-99999", "unheard-1", "../secret"])
def test_unknown_keys_are_refused(store, key):
    with pytest.raises(PruningError, match="upload it again"):
        store.get(key)


def test_no_picture_is_one_sentence(store):
    with pytest.raises(PruningError, match="There is no picture; upload one"):
        store.get("")


@pytest.mark.parametrize("key", EXAMPLES)
def test_examples_are_held_out_questions(store, key):
    task, _, number = key.partition("-")
    scene, question = sample(task, HELD_OUT, int(number))
    stored = store.get(key)
    assert (stored.question, stored.name) == (question, f"{key}.png")
    assert np.array_equal(np.asarray(stored.picture), np.asarray(scene.image))
