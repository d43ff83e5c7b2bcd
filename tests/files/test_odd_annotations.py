"""Annotations as people have them: read as they are meant, or refused for the whole file before the first question."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import odd_annotations
import pytest
from PIL import Image

import local_sets
from command_line import cli, document, sentence
from feathervlm import PruningError
from feathervlm.evaluation.tasks import TASKS
from feathervlm.evaluation.tasks.jsonl import Jsonl

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("FEATHERVLM_DATA") or ROOT.parent / "shared/data")
CHANGES = [(name, field, value) for name, fields in odd_annotations.ROWS.items() for field, value in fields]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return local_sets.make(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def altered(sets):
    """Change a file of the data sets for one test."""
    before = {}

    def write(path, content):
        path = sets / path
        before.setdefault(path, path.read_bytes() if path.exists() else None)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return sets

    yield write
    for path, content in before.items():
        path.unlink() if content is None else path.write_bytes(content)


def refusal(name, data):
    with pytest.raises(PruningError) as caught:
        TASKS[name](data).questions(None)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 900
    return said


@pytest.mark.parametrize(("name", "field", "value"), CHANGES)
def test_a_wrong_value_is_named_with_its_file_and_its_place(name, field, value, sets, altered):
    path = odd_annotations.FILES[name]
    content = (sets / path).read_text()
    said = refusal(name, altered(path, odd_annotations.changed(name, content, field, value)))
    assert str(sets / path) in said
    assert field in said
    if value is None:
        said = refusal(name, altered(path, odd_annotations.without(name, content, field)))
        assert field in said
        assert "KeyError" not in said


@pytest.mark.parametrize(("field", "value"), odd_annotations.REFERENCES)
def test_a_wrong_value_in_the_pickle_of_phrases(field, value, sets, altered):
    path = "refcoco/refcoco/refs(unc).p"
    said = refusal("refcoco", altered(path, odd_annotations.phrases((sets / path).read_bytes(), field, value)))
    assert (field if value != 99 else "99") in said


@pytest.mark.parametrize("kind", odd_annotations.WHOLE)
@pytest.mark.parametrize("name", odd_annotations.FILES)
def test_a_file_of_another_kind_is_one_sentence(name, kind, sets, altered):
    path = odd_annotations.FILES[name]
    altered(path, odd_annotations.WHOLE[kind]((sets / path).read_text()))
    if (name, kind) == ("pope", "empty"):
        assert len(TASKS[name](sets).questions(None)) == 5, "two other subsets are there"
        return
    said = refusal(name, sets)
    assert name.split("-")[0] in said.lower()


@pytest.mark.parametrize("name", odd_annotations.FILES)
def test_a_mark_of_utf_8_and_other_line_ends_change_nothing(name, sets, altered):
    path = odd_annotations.FILES[name]
    expected = TASKS[name](sets).questions(None)
    altered(path, b"\xef\xbb\xbf" + (sets / path).read_bytes().replace(b"\n", b"\r\n"))
    assert TASKS[name](sets).questions(None) == expected


@pytest.mark.parametrize(
    "text",
    ["2\n71\n", "2.png\n71.png\n", "2,\n71,\n", "\ufeff2\r\n71\r\n", '"2"\n"71"\n', "002\n071", "2.jpg,\n\n71.PNG;\n"],
)
def test_the_test_pictures_of_ai2d_however_they_are_listed(text, sets, altered):
    splits = {one.id: one.split for one in TASKS["ai2d"](altered("ai2d/ai2d_test_ids.csv", text)).questions(None)}
    assert splits == {
        "00002-2.png-0": "test",
        "00002-2.png-1": "test",
        "00010-10.png-0": "val",
        "00010-10.png-1": "val",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,2.png\n1,71.png\n", "line 1: '0,2.png' is not the number of one picture"),
        ("2 71", "line 1"),
        ("id\n2\n", "line 1: 'id'"),
        ("2\nseven\n", "line 2: 'seven'"),
        ("99\n100\n", "No number in ai2d_test_ids.csv is that of a file in"),
        ("", "No number in ai2d_test_ids.csv"),
    ],
)
def test_a_list_that_would_turn_the_test_split_into_the_other_one_is_refused(text, said, altered):
    assert said in refusal("ai2d", altered("ai2d/ai2d_test_ids.csv", text))


def test_files_of_ai2d_that_are_none_of_its_pictures(sets, altered):
    altered("ai2d/questions/._2.png.json", b"\0\5\x16\7")
    assert len(TASKS["ai2d"](sets).questions(None)) == 4, "what other systems add to archives is not read"
    assert "readme.json in" in refusal("ai2d", altered("ai2d/questions/readme.json", "{}"))


def test_all_that_is_wrong_is_said_at_once_and_counted(sets, altered):
    rows = [json.loads(line) | {"label": "False"} for line in (sets / "vsr/test.jsonl").read_text().splitlines()] * 3
    said = refusal("vsr", altered("vsr/test.jsonl", local_sets.lines(*rows)))
    assert [f"line {number}: label='False' should be" in said for number in range(1, 7)] == [True] * 5 + [False]
    assert "; and 7 more; put test.jsonl of the dataset" in said


@pytest.mark.parametrize("box", [[20.0, 10.0, 300.0, 50.0], [20.0, 10.0, 100.0, 900.0], [250.0, 10.0, 20.0, 20.0]])
def test_a_box_outside_its_picture_is_found_before_a_question_is_asked(box, sets, altered):
    path = "refcoco/refcoco/instances.json"
    altered(path, odd_annotations.changed("refcoco", (sets / path).read_text(), "bbox", box))
    task = TASKS["refcoco"](sets)
    with pytest.raises(
        PruningError, match=r"of question '000001-00000\d' of refcoco is outside of coco/train2014/.*200 x"
    ):
        task.check(task.questions(None))


def test_rounding_of_a_published_box_is_none(sets, altered):
    path = "refcoco/refcoco/instances.json"
    altered(path, odd_annotations.changed("refcoco", (sets / path).read_text(), "bbox", [20.0, 10.0, 180.4, 50.0]))
    task = TASKS["refcoco"](sets)
    task.check(task.questions(None))


@pytest.mark.parametrize(("name", "count"), [("pope", 9000), ("vsr", 1222)])
def test_the_published_files_are_read_whole(name, count):
    if not (REAL / name).is_dir():
        pytest.skip(f"there is no {name} in {REAL}")
    questions = TASKS[name](REAL).questions(None)
    assert len(questions) == count
    assert len({question.id for question in questions}) == count


# Questions of the user.


SIZE = (640, 480)
BOXES = [(64.0, 48.0, 320.0, 240.0), (320.0, 240.0, 640.0, 480.0), (0.0, 0.0, 640.0, 480.0), (6.4, 4.8, 64.0, 96.0)]


@pytest.fixture
def mine(tmp_path):
    """Write lines about a.png, and return the path of the file."""
    Image.linear_gradient("L").resize(SIZE).save(tmp_path / "a.png")

    def write(*lines):
        path = tmp_path / "mine.jsonl"
        made = [{"image": "a.png", "prompt": "where?"} | line if isinstance(line, dict) else line for line in lines]
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in made))
        return path

    return write


def written(box, form):
    left, top, right, bottom = box
    if form == "xywh":
        return [left, top, right - left, bottom - top]
    whole = {"pixels": None, "fractions": 1, "percent": 100}[form]
    return [end if whole is None else end / side * whole for end, side in zip(box, SIZE * 2, strict=True)]


@pytest.mark.parametrize("form", ["pixels", "fractions", "percent", "xywh"])
def test_boxes_in_every_format_are_the_same_boxes(form, mine):
    lines = [{"box": written(box, form), "box_format": form} for box in BOXES]
    found = [question.box for question in Jsonl(mine(*lines)).questions(None)]
    np.testing.assert_allclose(found, BOXES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"box": [0.1, 0.2, 0.5, 0.6]},
            'is smaller than a pixel of its picture; if it is not in pixels, name its "box_',
        ),
        ({"box": [0, 0, 1, 1]}, "is smaller than a pixel"),
        ({"box": [0.1, 0.2, 0.5, 0.6], "box_format": "pixels"}, "is smaller than a pixel"),
        ({"box": [10, 20, 500, 60], "box_format": "percent"}, "has numbers outside of 0 to 100, which are not percent"),
        ({"box": [0.1, 0.2, 1.5, 0.6], "box_format": "fractions"}, "outside of 0 to 1, which are not fractions"),
        ({"box": [10, 20, 50, 60], "box_format": "fractions"}, "outside of 0 to 1"),
        ({"box": [-5, 2, 50, 60], "box_format": "percent"}, "outside of 0 to 100"),
        ({"box": [600, 20, 100, 60], "box_format": "xywh"}, "sticks out of its picture of 640x480 pixels"),
        ({"box": [10, 20, 0, 60], "box_format": "xywh"}, "needs left < right and top < bottom"),
        (
            {"box": [300, 200, 100, 60]},
            'needs left < right and top < bottom; if it is not in pixels, name its "box_format"',
        ),
        (
            {"box": [10, 20, 50, 60], "box_format": "xyxy"},
            "box_format='xyxy' must be pixels, fractions, percent or xywh",
        ),
        ({"box": [10, 20, 50, 60], "box_format": 7}, "box_format=7 must be"),
        ({"answer": "cat", "box_format": "pixels"}, "'box_format' without a 'box'"),
        ({"box": [10, 20, True, 60]}, "box=[10, 20, True, 60] must be four numbers"),
        ({"box": "[10, 20, 50, 60]"}, "must be four numbers"),
        ({"box": {"left": 1}}, "must be four numbers"),
        ({"answers": "cat"}, "answers='cat' must be a list of texts"),
        ({"answers": ["cat", 3]}, "answers=['cat', 3] must be a list of texts"),
        ({"answer": True}, "answer=True must be text"),
        ({"answer": 2}, "answer=2 must be text"),
        ('{"image": "a.png", "prompt": "x", "answer": "y", "answer": "n"}', "'answer' occurs twice"),
        ('{"image": "a.png", "prompt": "x", "answer": ' + odd_annotations.DEEP, "no valid JSON (too many levels)"),
        ('{"image": "a.png", "prompt": "x", "answer": "\\ud800"}', "must be text"),
        ("\0\0\0\0", "no valid JSON"),
    ],
)
def test_what_a_line_cannot_mean_is_said_with_its_line(line, said, mine):
    with pytest.raises(PruningError) as caught:
        Jsonl(mine({"box": [10, 20, 500, 400]}, line))
    assert "has broken lines: line 2: " in str(caught.value)
    assert said in str(caught.value)


def test_boxes_that_may_be_percent_are_never_taken_for_pixels_in_silence(mine):
    percent = [written(box, "percent") for box in BOXES]
    with pytest.raises(
        PruningError, match=r"All boxes of .* lie within 0 to 100, and so would boxes in percent; say which"
    ):
        Jsonl(mine(*({"box": box} for box in percent)))
    with pytest.warns(UserWarning, match="feathervlm reads boxes as pixels, but all boxes of"):
        Jsonl(mine({"box": percent[0]}))
    fractions = [written(box, "fractions") for box in BOXES]
    with pytest.raises(PruningError, match="lie within 0 to 1, and so would boxes in fractions"):
        Jsonl(mine(*({"box": box, "box_format": "percent"} for box in [*fractions[1:3], [0, 0, 1, 0.5]])))
    stated = [{"box": box, "box_format": "pixels"} for box in percent]
    assert [question.box for question in Jsonl(mine(*stated)).questions(None)] == [tuple(box) for box in percent]


def test_study_and_eval_refuse_such_a_file_before_a_model_is_looked_at(mine, tmp_path):
    path = mine(*({"box": written(box, "fractions")} for box in BOXES[:2]))
    for command, option in (("study", "--data"), ("eval", "--tasks")):
        said = sentence(cli(command, option, path, "--out", tmp_path / "out"))
        assert "line 1: box=[0.1, 0.1, 0.5, 0.5] is smaller than a pixel" in said
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_not_mixed_up(mine, tmp_path):
    path = mine({"answer": "cat"})
    other = tmp_path / "other" / "mine.jsonl"
    other.parent.mkdir()
    other.write_text(path.read_text().replace("a.png", "../a.png"))
    for command, option in (("study", "--data"), ("eval", "--tasks")):
        said = sentence(cli(command, option, f"{path},{other}", "--out", tmp_path / "out"))
        assert "rename one" in said


def test_answers_in_the_formats_of_boxes_are_graded_alike(mine, tmp_path):
    """The embedded model's own box of a scene, whose file names it in each format, is right in all."""
    from feathervlm.embedded.tasks import HELD_OUT, sample

    scene, asked = sample("locate", HELD_OUT, 0)
    scene.image.save(tmp_path / "a.png")
    lines = []
    for form, whole in (("pixels", None), ("fractions", 1), ("percent", 100), ("xywh", None)):
        left, top, right, bottom = (end if whole is None else end / 128 * whole for end in asked.box)
        box = [left, top, right - left, bottom - top] if form == "xywh" else [left, top, right, bottom]
        lines.append({"prompt": asked.text, "box": box, "box_format": form})
    found = document(cli("eval", "--tasks", mine(*lines), "--method", "none", "--out", tmp_path / "out", "--json"))
    samples = next((tmp_path / "out/samples/mine.jsonl").iterdir()).read_text().splitlines()
    assert len({json.loads(one)["iou"] for one in samples}) == 1
    assert json.loads(samples[0])["iou"] > 0.5
    assert found["rows"][0]["score"]["value"] == 1


def test_a_pickle_that_is_damaged_is_one_sentence(sets, altered):
    path = "refcoco/refcoco/refs(unc).p"
    whole = (sets / path).read_bytes()
    for content in (
        whole[:40],
        b"",
        b"\x80\x04\x95\xff\xff\xff\xff",
        b"hello",
        pickle.dumps({"a": 1}),
        whole[:60] + b"\xff" * 20,
    ):
        assert path in refusal("refcoco", altered(path, content))
