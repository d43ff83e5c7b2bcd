"""Pictures as people have them, in every place that opens pictures: read as a viewer shows them, or refused."""

import base64
import contextlib
import json
import os
from pathlib import Path

import numpy as np
import odd_pictures
import pytest
from PIL import Image

import feathervlm
import local_sets
from command_line import cli, document, sentence
from families.processors import PROCESSORS
from feathervlm import PruningError
from feathervlm.evaluation.tasks import TASKS
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.prompts import Prompt, image_marker, prepare
from feathervlm.utils import pictures
from feathervlm.utils.pictures import as_rgb, decode, measure, open_picture

pytestmark = pytest.mark.filterwarnings("ignore:feathervlm reads")
SAME = dict(odd_pictures.same_pixels())
GREY = dict(odd_pictures.same_grey())
DAMAGED = dict(odd_pictures.damaged())
QUESTION = "what is the background ?"
FEW = ("half.jpg", "big-text.png", "far-strip.tif")
"""Damaged pictures for every command: in their pixels, their text, their structure."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All whole pictures, under their names."""
    root = tmp_path_factory.mktemp("pictures")
    for name, content in {**SAME, **GREY}.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    for name, content in DAMAGED.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def answerer():
    return Answerer(LoadedModel.of(*feathervlm.embedded.load()))


@pytest.mark.parametrize("name", SAME)
def test_the_same_pixels_in_every_container_and_orientation(name, folder):
    opened = open_picture(folder / name)
    assert opened.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(opened), odd_pictures.PIXELS)
    assert measure(SAME[name], name) == opened.size
    with Image.open(folder / name) as picture:
        np.testing.assert_array_equal(np.asarray(as_rgb(picture)), odd_pictures.PIXELS)
    assert opened.getexif().get(0x0112) is None, "no one turns it again"


@pytest.mark.parametrize("name", GREY)
def test_grey_of_any_depth_is_scaled_and_not_clipped(name, folder):
    opened = np.asarray(open_picture(folder / name))
    np.testing.assert_array_equal(opened, np.repeat(odd_pictures.GREY[..., None], 3, 2))


@pytest.mark.parametrize("suffix", ["jpg", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_lossy_containers_are_turned(suffix, orientation):
    smooth = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
    kind, options = {"jpg": ("JPEG", {"quality": 95}), "avif": ("AVIF", {"quality": 95})}[suffix]
    stored = odd_pictures.stored(smooth, orientation)
    content = odd_pictures.save(stored, kind, exif=odd_pictures.exif(orientation), **options)
    opened = decode(content)
    assert opened.size == measure(content, "") == (64, 48)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(smooth)).max() < 16


def test_the_background_shows_through(folder):
    shown = np.asarray(open_picture(folder / "cut-out-0.png", background="#0a141e"))
    white = (odd_pictures.PIXELS == 255).all(-1)
    assert (shown[white] == (10, 20, 30)).all()
    np.testing.assert_array_equal(shown[~white], odd_pictures.PIXELS[~white])
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert np.asarray(as_rgb(half)).tolist() == [[[127] * 3] * 2] * 2
    with pytest.raises(PruningError, match="'no such colour' is not a colour; give one such as white"):
        open_picture(folder / "plain.png", background="no such colour")


def test_frames_and_guesses_are_said(folder):
    for name, said in (
        ("animation.png", r"first of the 2 frames of .*animation\.png"),
        ("pages.tif", r"first of the 2 frames of .*pages\.tif"),
        ("float01.tif", r"float01\.tif as grey from 0 to 1"),
    ):
        with pytest.warns(UserWarning, match=said):
            open_picture(folder / name)


def test_too_many_pixels_are_refused_with_the_limit(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PruningError, match=r"plain\.png has more than 0 million pixels, which is the limit; scale it"):
        open_picture(folder / "plain.png")


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_sentence_that_names_file_and_remedy(name, damaged):
    for opened in (lambda: open_picture(damaged / name), lambda: as_rgb(damaged / name)):
        with pytest.raises(PruningError) as caught:
            opened()
        said = str(caught.value)
        assert str(damaged / name) in said
        assert "\n" not in said
        assert said.endswith(".")
        assert len(said) < 400
        assert "give a PNG or JPEG" not in said
    with contextlib.suppress(PruningError):
        measure(DAMAGED[name], name)


def test_a_strip_that_no_processor_can_enlarge_is_refused(tmp_path):
    Image.new("RGB", (30000, 2)).save(tmp_path / "strip.png")
    with pytest.raises(PruningError, match=r"strip\.png has 30000 x 2 pixels, and a side may be at most 1000 times"):
        open_picture(tmp_path / "strip.png")
    processor = PROCESSORS["qwen2_vl"]()
    prompt = Prompt(f"{image_marker(processor)} word", (Image.new("RGB", (900, 3)),))
    with pytest.raises(PruningError, match=r"does not take these pictures .*aspect ratio"):
        prepare(processor, [prompt])


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for path, said in (
        (tmp_path / "pipe.png", "is not a regular file, but a pipe or a device"),
        (Path("/dev/null"), "is not a regular file"),
        (tmp_path, "is a directory"),
        (tmp_path / "none.png", "There is no image file"),
        (tmp_path / "loop.png", "cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(PruningError, match=said):
            open_picture(path)
    assert "pipe.png is not a regular file" in sentence(cli("run", "--image", tmp_path / "pipe.png", "--prompt", "x"))


def ways(name, content, tmp_path):
    """A command line for each command that reads pictures, with one picture."""
    path = tmp_path / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    lines = tmp_path / "mine.jsonl"
    lines.write_text(json.dumps({"image": f"in/{name}", "prompt": QUESTION, "answer": "red"}))
    return {
        "run": ["run", "--image", path, "--prompt", QUESTION],
        "demo": ["demo", "--image", path, "--prompt", QUESTION, "--out", tmp_path / "out"],
        "diagnose": ["diagnose", "--images", path.parent, "--out", tmp_path / "out"],
        "eval": ["eval", "--tasks", lines, "--out", tmp_path / "out"],
        "study": ["study", "--data", lines, "--out", tmp_path / "out"],
    }


SOME = ("plain.jp2", "palette.gif", "turned5.tif", "cut-out-99.webp")
COMMANDS = ("run", "demo", "diagnose", "eval", "study")
CROSSED = [
    pytest.param(name, command, marks=() if name in FEW or (command == "run" and ".png" in name) else pytest.mark.full)
    for name in DAMAGED
    for command in COMMANDS
    if not (command == "diagnose" and name.endswith((".heic", ".eps")))
]


@pytest.mark.parametrize(("name", "command"), CROSSED)
def test_a_damaged_picture_in_every_command(name, command, tmp_path):
    said = sentence(cli(*ways(name, DAMAGED[name], tmp_path)[command]))
    assert name in said
    assert not (tmp_path / "out").exists(), "nothing is left by a refusal"


def test_a_damaged_picture_among_the_files_of_a_benchmark(tmp_path, monkeypatch):
    """It is found before a model is loaded, also where only its pixels are damaged."""
    from feathervlm.evaluation import runner
    from feathervlm.evaluation.runner import Work, check_pictures
    from feathervlm.evaluation.tasks.base import QuestionSet

    local_sets.make(tmp_path)
    path = tmp_path / "coco/val2014/COCO_val2014_000000000009.jpg"
    whole = path.read_bytes()
    for content, found in ((whole[:7], "check"), (whole[: len(whole) // 2], "open")):
        path.write_bytes(content)
        task = TASKS["pope"](tmp_path)
        asked = QuestionSet(task, task.questions(None))
        if found == "check":
            with pytest.raises(PruningError, match=path.name):
                task.check(asked.questions)
            continue
        task.check(asked.questions)
        with pytest.raises(PruningError, match=path.name):
            check_pictures([asked], [Work(0, chunk, ()) for chunk in asked.chunks], "symmetric")
    assert runner.check_pictures is check_pictures


@pytest.mark.parametrize("names", [SOME, pytest.param(tuple(SAME), marks=pytest.mark.full)], ids=["some", "all"])
def test_all_containers_get_one_answer(names, folder, tmp_path):
    """Through the command line, with the patches that FEATHER keeps."""
    (tmp_path / "mine.jsonl").write_text(
        "\n".join(json.dumps({"image": str(folder / name), "prompt": QUESTION, "answer": "red"}) for name in names)
    )
    out = tmp_path / "out"
    document(cli("eval", "--tasks", tmp_path / "mine.jsonl", "--out", out, "--method", "feather:layers=4+9", "--json"))
    for path in (out / "samples" / "mine.jsonl").iterdir():
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(samples) == len(names)
        assert len({(one["answer"], tuple(one["kept"])) for one in samples}) == 1, path.name


def test_benchmarks_show_pictures_as_their_protocol_says(tmp_path):
    """Upright, but not where the harness of the paper or published boxes take pictures as they are stored."""
    local_sets.make(tmp_path)
    for name, image in (
        ("pope", "coco/val2014/COCO_val2014_000000000009.jpg"),
        ("refcoco", "coco/train2014/COCO_train2014_000000000021.jpg"),
    ):
        Image.new("RGB", (200, 120)).save(tmp_path / image, exif=odd_pictures.exif(6))
        task = TASKS[name](tmp_path)
        question = task.questions(None)[0]
        assert task.open(question, "paper").size == (200, 120)
        assert task.open(question).size == ((120, 200) if name == "pope" else (200, 120))


def test_a_path_in_a_conversation_is_opened_in_the_same_place(folder, answerer):
    name, grey = "turned6.png", "grey16.png"
    expected = prepare(answerer.processor, [Prompt(QUESTION, (Image.fromarray(odd_pictures.PIXELS),))])
    encoded = base64.b64encode(SAME[name]).decode()
    for part in (
        {"path": str(folder / name)},
        {"image": str(folder / name)},
        {"image": folder / name},
        {"url": f"file://{folder / name}"},
        {"base64": encoded},
        {"image": f"data:image/png;base64,{encoded}"},
        {"image": Image.open(folder / name)},
    ):
        chat = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": QUESTION}]}]
        before = json.dumps(chat, default=str)
        found = prepare(answerer.processor, [Prompt("", (), chat)])
        assert (found["pixel_values"] == expected["pixel_values"]).all(), part
        assert json.dumps(chat, default=str) == before, "the caller's conversation is left alone"
    chat[0]["content"][0] = {"type": "image", "path": str(folder / grey)}
    (answer,) = answerer.ask([Prompt("", (), chat)], "feather:layers=4+9")
    assert answer.report is not None
    assert answer.report.pruned, "a picture in a conversation counts"
    chat[0]["content"][0] = {"type": "image", "path": str(folder / "nowhere.png")}
    with pytest.raises(PruningError, match="There is no image file"):
        prepare(answerer.processor, [Prompt("", (), chat)])


def test_an_overlay_lies_on_the_upright_picture(folder, answerer):
    picture = Image.fromarray(odd_pictures.PIXELS)
    (answer,) = answerer.ask([Prompt(QUESTION, (picture,))], "fastv:layer=2")
    expected = answer.report.overlay(picture, processor=answerer.processor).tobytes()
    for given in (folder / "turned6.png", str(folder / "turned8.tif"), Image.open(folder / "turned5.webp")):
        assert answer.report.overlay(given, processor=answerer.processor).tobytes() == expected


def test_every_suffix_that_pillow_knows_is_diagnosed_and_others_are_said(tmp_path):
    from feathervlm.diagnosis.images import image_sources, passed_over

    picture = Image.fromarray(odd_pictures.PIXELS)
    kinds = {".gif": "GIF", ".TIF": "TIFF", ".avif": "AVIF", ".jp2": "JPEG2000", ".jpe": "JPEG", ".jfif": "JPEG"}
    for suffix, kind in kinds.items():
        (tmp_path / f"a{suffix}").write_bytes(odd_pictures.save(picture, kind))
    assert passed_over(tmp_path) == []
    assert len(list(image_sources(tmp_path, 32))) == 6
    for name in ("b.heic", "notes.txt", "c.pdf", "d", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (said,) = passed_over(tmp_path)
    assert said.startswith("b.heic, c.pdf, d and 1 more in ")
    only = tmp_path / "only"
    only.mkdir()
    (only / "b.heic").write_bytes(b"x")
    with pytest.raises(PruningError, match=r"There is no picture in .*only, which holds b\.heic; put some there"):
        list(image_sources(only, 32))


def test_pictures_are_opened_in_one_place():
    """Nothing but `utils.pictures` asks Pillow to open a file."""
    source = Path(feathervlm.__file__).parent
    wrong = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if path.name != Path(pictures.__file__).name
        if any(call in path.read_text() for call in ("Image.open(", "exif_transpose("))
    ]
    assert wrong == []
