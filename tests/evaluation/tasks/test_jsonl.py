"""A user's own questions: what a file may say, and one clear sentence for everything else."""

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from feathervlm import PruningError
from feathervlm.evaluation.tasks.base import QuestionSet, Reading
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.evaluation.tasks.jsonl_schema import parse
from feathervlm.families import FAMILIES
from feathervlm.utils import pictures

GOOD = {"image": "a.png", "prompt": "where?", "box": [1, 2, 30, 20]}
OTHER = {"image": "a.png", "prompt": "what?", "answers": ["cat", "a cat"]}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("L", (20, 50)).save(tmp_path / "sub" / "b.jpg")
    return tmp_path


def write(folder, *lines):
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def read(folder, *lines):
    return questions_of(write(folder, *lines))


def questions_of(path):
    task = Jsonl(path)
    return QuestionSet(task, task.questions(None))


def refusal(folder, *lines):
    with pytest.raises(PruningError) as caught:
        read(folder, *lines)
    return str(caught.value)


def test_questions_in_the_order_of_the_file(folder):
    lines = [
        OTHER | {"id": "x"},
        "",
        GOOD | {"image": str(folder / "sub" / "b.jpg"), "id": None, "answers": None, "box": [0, 0, 20, 50]},
        {"image": "sub/b.jpg", "prompt": "is it?", "answer": "yes", "task": "existence", "id": 7},
        "   ",
        GOOD,
    ]
    data = read(folder, *lines)
    assert data.name == "mine.jsonl"
    assert data.splits == ["other", "localization", "existence", "localization"]
    assert data.kinds == {"other": "other", "localization": "localization", "existence": "other"}
    assert data.task.localizes
    assert [question.id for question in data.questions] == ["x", "3", "7", "6"]
    assert [question.target for question in data.questions] == [("cat", "a cat"), None, ("yes",), None]
    assert [question.box for question in data.questions] == [None, (0, 0, 20, 50), None, (1, 2, 30, 20)]
    pictures = [data.item(number)[1] for number in range(4)]
    assert [picture.size for picture in pictures] == [(40, 30), (20, 50), (20, 50), (40, 30)]
    assert all(picture.mode == "RGB" for picture in pictures)
    assert [question.id for question in data.task.questions(1)] == ["7", "3", "x"], "split after split"


def test_answers_are_compared_without_case_and_full_stop(folder):
    data = read(folder, OTHER, GOOD)
    task, (other, where) = data.task, data.questions
    boxes = {"right": (1.0, 2.0, 30.0, 20.0), "half": (1.0, 2.0, 30.0, 11.0)}
    reading = Reading("symmetric", (40, 30), boxes.get)
    assert [task.grade(other, answer, reading).score for answer in (" A cat. ", "Cat", "dog")] == [1, 1, 0]
    graded = [task.grade(where, answer, reading) for answer in ("right", "half", "none")]
    assert [(one.score, one.valid, one.iou) for one in graded] == [(1, True, 1), (1, True, 0.5), (0, False, 0)]


def test_it_can_be_sent_to_another_process(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(folder)
    write(folder, GOOD, OTHER)
    data = questions_of(Path("mine.jsonl"))
    sent = pickle.loads(pickle.dumps(data))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert sent.questions == data.questions
    assert (sent.kinds, sent.splits, sent.fingerprint) == (data.kinds, data.splits, data.fingerprint)
    assert sent.item(1)[1].size == (40, 30)


def test_pictures_are_not_decoded_before_they_are_asked_about(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(pictures, "decode", lambda *_, **__: opened.append(_))
    monkeypatch.setattr(Image.Image, "load", lambda self: opened.append(self))
    read(folder, GOOD, OTHER, OTHER | {"image": "sub/b.jpg"})
    assert opened == []


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.tiff"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_turned_picture_is_measured_upright(folder, name, turn):
    picture = Image.new("RGB", (40, 30))
    exif = picture.getexif()
    exif[0x0112] = turn
    picture.save(folder / name, exif=exif)
    data = read(folder, GOOD | {"image": name, "box": [0, 0, 30, 30]})
    size = data.task.facts(name, upright=True).size
    assert data.item(0)[1].size == size
    assert (size == (30, 40)) == (turn > 4)


def test_the_fingerprint_follows_questions_and_pictures_only(folder, tmp_path_factory):
    def found(*lines):
        return read(folder, *lines).fingerprint

    first = found(GOOD, OTHER)
    assert found(GOOD, OTHER) == first
    assert found(OTHER, GOOD) != first
    copy = tmp_path_factory.mktemp("copy")
    (copy / "a.png").write_bytes((folder / "a.png").read_bytes())
    assert read(copy, GOOD, OTHER).fingerprint == first
    Image.new("RGB", (40, 30), "blue").save(folder / "a.png")
    assert found(GOOD, OTHER) != first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no valid JSON"),
        ('{"image": "a.png",}', "no valid JSON"),
        ("[" * 5000, "no valid JSON"),
        ('{"id": ' + "1" * 5000 + "}", "no valid JSON"),
        ("[1, 2]", "[1, 2] is no JSON object"),
        ("null", "None is no JSON object"),
        (GOOD | {"boxx": 1}, "unknown key 'boxx'"),
        ({"prompt": "where?", "box": [1, 2, 3, 4]}, "no 'image'"),
        ({"image": "a.png", "answer": "yes"}, "no 'prompt'"),
        (GOOD | {"prompt": 3}, "prompt=3 must be text"),
        (GOOD | {"prompt": " "}, "'prompt' is empty"),
        (GOOD | {"task": ""}, "'task' is empty"),
        (GOOD | {"id": True}, "id=True must be text or a whole number"),
        (GOOD | {"id": 1.5}, "id=1.5 must be text"),
        (GOOD | {"image": "none.png"}, "There is no image file"),
        (GOOD | {"image": "sub"}, "sub is a directory"),
        (GOOD | {"image": "mine.jsonl"}, "mine.jsonl cannot be read as an image (its format is not known)"),
        (GOOD | {"image": "a\0b"}, "There is no image file"),
        (GOOD | {"image": "x" * 5000}, "There is no image file"),
        (GOOD | {"box": [1, 2, 3]}, "box=[1, 2, 3] must be four numbers [left, top, right, bottom]"),
        (GOOD | {"box": [1, 2, 3, "4"]}, "must be four numbers"),
        (GOOD | {"box": [1, 2, 3, 10**400]}, "must be four numbers"),
        (GOOD | {"box": [1, 2, 3, float("nan")]}, "must be four numbers"),
        (GOOD | {"box": [30, 2, 1, 20]}, "needs left < right and top < bottom"),
        (GOOD | {"box": [1, 20, 30, 20]}, "needs left < right and top < bottom"),
        (GOOD | {"box": [1, 2, 41, 20]}, "sticks out of its picture of 40x30 pixels"),
        (GOOD | {"box": [1, -2, 40, 20]}, "sticks out of its picture of 40x30 pixels"),
        (GOOD | {"answers": ["x"]}, "'box' and 'answers' to compare with; give either 'box' or 'answers'"),
        (OTHER | {"answer": "cat"}, "'answers' and 'answer' to compare with"),
        ({"image": "a.png", "prompt": "?"}, "nothing to compare with; give either 'box' or 'answers'"),
        (OTHER | {"answers": []}, "answers=[] leaves nothing to compare with"),
        (OTHER | {"answers": ["cat", " . "]}, "leaves nothing to compare with"),
        (OTHER | {"answers": "cat"}, "answers='cat' must be a list of texts"),
        (GOOD | {"answers": None, "answer": "."}, "'box' and 'answer' to compare with"),
        (GOOD | {"id": "1"}, "id '1' is also that of line 1"),
        (OTHER | {"task": "localization"}, "task 'localization' has answers here and box in line 1"),
    ],
)
def test_a_broken_line_is_named_in_one_sentence(folder, line, said):
    message = refusal(folder, GOOD, "", line)
    assert said in message
    assert "has broken lines: line 3: " in message
    assert message.count("line 3: ") == 1
    assert message.endswith("in place of the box.")
    assert len(message) < 600


def test_all_that_is_wrong_with_a_line_is_said(folder):
    assert "no 'prompt', box=[1] must be four numbers [left, top, right, bottom], unknown key 'x';" in refusal(
        folder, {"image": "a.png", "box": [1], "x": 0}, "{"
    )


def test_the_first_broken_lines_are_told_and_the_others_counted(folder):
    message = refusal(folder, GOOD, *["{"] * 5, GOOD, *["{"] * 3)
    assert re.findall(r"line (\d+):", message) == ["2", "3", "4", "5", "6"]
    assert "; and 3 more - mend them: " in message
    assert "more" not in refusal(folder, *["{"] * 5)


def test_rounding_may_stick_out(folder):
    assert read(folder, GOOD | {"box": [-1e-9, 0, 40.000001, 30]}).questions[0].box == (-1e-9, 0, 40.000001, 30)


def test_a_file_that_is_none(folder):
    for path, said in [
        (folder, "is a directory; give the JSONL file"),
        (folder / "none.jsonl", "There is no data file"),
        (folder / "a\0b", "cannot be read"),
        (folder / "a.png", "is not UTF-8 (line 1); save it as UTF-8"),
    ]:
        with pytest.raises(PruningError, match=re.escape(said)):
            Jsonl(path)
    assert "holds no question" in refusal(folder, "", "  ")


def test_a_mark_of_utf_8_and_other_line_ends_are_taken(folder):
    line = json.dumps(OTHER | {"prompt": "a\u2028b\x85c"}, ensure_ascii=False)
    (folder / "mine.jsonl").write_bytes(f"\ufeff{line}\r\n\r\n{line}\r\n".encode())
    data = questions_of(folder / "mine.jsonl")
    assert [question.id for question in data.questions] == ["1", "3"]
    assert data.questions[0].prompt == "a\u2028b\x85c"


def test_a_picture_that_goes_or_changes_later(folder):
    data = read(folder, GOOD, OTHER)
    Image.new("RGB", (41, 30)).save(folder / "a.png")
    with pytest.raises(PruningError, match=r"a\.png has changed since this command began; run the same command again"):
        data.item(0)
    (folder / "a.png").unlink()
    with pytest.raises(PruningError, match="There is no image file"):
        data.item(0)


def test_the_examples_of_the_docs_are_true():
    text = (Path(__file__).parents[3] / "docs" / "study-data.md").read_text()
    examples, code = re.findall(r"```(?:json|python)\n(.*?)```", text, re.DOTALL)
    lines = [parse(line) for line in examples.splitlines()]
    assert [len(line.right) for line in lines] == [0, 2, 1]
    asked = FAMILIES["qwen2_5_vl"].boxes.ask("the red car")
    assert lines[0].prompt == asked
    assert f"# {asked}\n" in code


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["id", "image", "prompt", "box", "answers", "answer", "task", "x"])
objects = st.dictionaries(keys, values, max_size=6).map(lambda some: json.dumps(GOOD | some))
cut = st.builds(lambda line, end: line[:end], objects, st.integers(0, 80))
lines = st.lists(objects | cut | values.map(json.dumps) | st.text(max_size=20), max_size=5)


@given(lines)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_says_it_is_read_or_refused(folder, lines):
    path = folder / "mine.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "replace"))
    _read_or_refuse(path)


@given(st.binary(max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_a_file_and_a_picture_hold(folder, content):
    (folder / "mine.jsonl").write_bytes(content)
    _read_or_refuse(folder / "mine.jsonl")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[: len(content)] + content)
    _read_or_refuse(write(folder, OTHER | {"image": "c.png"}))


def _read_or_refuse(path):
    try:
        data = questions_of(path)
    except PruningError:
        return
    assert len(data.splits) == len(data.questions) > 0
    assert set(data.splits) == set(data.kinds)
    assert len({question.id for question in data.questions}) == len(data.questions)
    assert len(data.fingerprint) == 64
    assert pickle.loads(pickle.dumps(data)).questions == data.questions
