"""Every task on its files: ids, prompts, pictures, what is right, scores by hand, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

import local_sets
from feathervlm import PruningError
from feathervlm.core.boxes import FRACTIONS_OF_SQUARE
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.evaluation.tasks import GROUPS, SUITE, TASKS, chosen
from feathervlm.evaluation.tasks.base import Question, Reading, first_of_splits

FILES = sorted(set(TASKS) - {"embedded"})


def by_id(data, name):
    return {question.id: question for question in TASKS[name](data).questions(None)}


def reading(protocol="paper", size=(640, 480), box=lambda answer: None):
    return Reading(protocol, size, box)


def score(data, name, question, answer, **settings):
    return TASKS[name](data).grade(question, answer, reading(**settings)).score


@pytest.mark.parametrize("name", FILES)
def test_every_question_has_its_picture_and_an_answer_that_is_right(data, name):
    task = TASKS[name](data)
    questions = task.questions(None)
    task.check(questions)
    assert len({question.id for question in questions}) == len(questions) > 1
    for question in questions:
        assert task.open(question).mode == "RGB"
        prompt = task.prompt(question, "paper", None)
        assert prompt == prompt.strip()
        size = task.open(question).size
        right = "2"
        if question.choices:
            right = question.choices[question.target]
        elif name == "gqa":
            right = question.target
        elif task.localizes:
            right = str([end / side for end, side in zip(question.box, size * 2, strict=True)])
        protocol = "symmetric" if name == "gqa" else "paper"
        assert task.grade(question, right, reading(protocol, size)).score > 0.5, question
        assert task.grade(question, "", reading("paper", size)).score == 0
        assert task.grade(question, "nonsense", reading("symmetric", size)).score == 0


def test_the_suite_is_all_but_the_embedded_one():
    assert sorted(GROUPS["feather_suite"]) == FILES
    assert sum(TASKS[name].count for name in ("refcoco", "refcoco+", "refcocog")) == 26488
    assert [task.name for task in chosen(["vsr", "feather_suite", "vsr"], Path())][:2] == ["vsr", "ocid-ref"]
    assert {name for name, task in TASKS.items() if task.localizes} == set(SUITE["localization"])
    with pytest.raises(PruningError, match="no task 'vqa'"):
        chosen(["vqa"], Path())
    with pytest.raises(PruningError, match="No task"):
        chosen([], Path())


def test_vsr(data):
    found = by_id(data, "vsr")
    assert sorted(found) == ["00000", "00001", "00002", "00003"]
    assert found["00000"] == Question(
        id="00000",
        prompt=(
            'Based on the image, is this statement "True" or "False"? The cat is above the bag.\n'
            'Respond with "True" or "False" directly.'
        ),
        image="coco/train2017/000000000017.jpg",
        target=1,
        choices=("True", "False"),
    )
    assert [found[key].choices[found[key].target] for key in sorted(found)] == ["False", "True", "False", "True"]


def test_vsr_takes_the_authors_flat_folder_where_there_is_one(data, tmp_path):
    (tmp_path / "vsr/images").mkdir(parents=True)
    shutil.copy(data / "vsr/test.jsonl", tmp_path / "vsr/test.jsonl")
    assert by_id(tmp_path, "vsr")["00000"].image == "vsr/images/000000000017.jpg"


def test_tallyqa(data):
    found = by_id(data, "tallyqa")
    prompt = found["300"].prompt.split("\n")
    assert prompt[:3] == ["How many dogs are there?", "A. 0", "B. 1"]
    assert prompt[-2:] == ["P. 15", "Answer with the option's letter from the given choices directly."]
    assert [found[str(key)].choices[found[str(key)].target] for key in range(300, 304)] == ["A", "D", "P", "B"]
    assert [found[str(key)].split for key in range(300, 304)] == ["simple"] * 3 + ["complex"]
    assert found["301"].image == "visual-genome/VG_100K_2/5.jpg"


def test_ocid_ref(data):
    found = by_id(data, "ocid-ref")
    assert [found[str(key)].split for key in range(7, 12)] == ["minimum", "minimum", "medium", "medium", "maximum"]
    one = found["7"]
    assert one.box == (64, 48, 320, 240)
    assert TASKS["ocid-ref"](data).prompt(one, "paper", None).endswith('describes: "the bowl behind the box"')
    asked = TASKS["ocid-ref"](data).prompt(one, "symmetric", FRACTIONS_OF_SQUARE)
    assert asked == FRACTIONS_OF_SQUARE.ask("the bowl behind the box")


@pytest.mark.parametrize(
    ("answer", "expected", "valid"),
    [
        ("[0, 0, 0.5, 0.5]", 1.0, True),
        ("[0, 0, 0.25, 0.25]", 1.0, True),  # a quarter of it: exactly the threshold
        ("[0, 0, 0.25, 0.24]", 0.0, True),
        ("[0.6, 0.6, 0.9, 0.9]", 0.0, True),
        ("[0, 0, 0.5, 1.5]", 0.0, False),
        ("[0.5, 0, 0, 0.5]", 0.0, False),
        ("(0, 0, 0.5, 0.5)", 0.0, False),
        ("", 0.0, False),
    ],
)
def test_boxes_by_hand_as_in_the_paper(data, answer, expected, valid):
    question = Question("1", "x", "", box=(0.0, 0.0, 320.0, 240.0))
    found = TASKS["ocid-ref"](data).grade(question, answer, reading("paper"))
    assert (found.score, found.valid) == (expected, valid)
    assert found.iou is not None
    assert (found.iou > 0) == (expected > 0 or "0.24" in answer)


def test_boxes_in_the_model_s_own_format(data):
    question = Question("1", "x", "", box=(100.0, 100.0, 200.0, 200.0))
    task = TASKS["refcoco"](data)
    boxes = {"half": (100.0, 100.0, 200.0, 150.0), "less": (100.0, 100.0, 200.0, 149.0)}
    graded = {text: task.grade(question, text, reading("symmetric", box=boxes.get)) for text in ("half", "less", "?")}
    assert {text: (one.score, one.valid, one.iou) for text, one in graded.items()} == {
        "half": (1.0, True, 0.5),
        "less": (0.0, True, 0.49),
        "?": (0.0, False, 0.0),
    }


def test_vqa_tasks_score_as_people_agree(data):
    assert len(by_id(data, "vqav2")) == len(by_id(data, "vizwiz")) == 3
    one = by_id(data, "vqav2")["000000009000"]
    assert one.prompt == "How many?\nAnswer the question using a single word or phrase."
    assert one.split == "number"
    assert one.target == tuple(local_sets.PEOPLE)
    # "2" is said by 6, in digits; the normalized answer never meets "two" and "Two." where those are left as they are.
    assert score(data, "vqav2", one, "Two.") == 1
    assert score(data, "vqav2", one, "three") == 0
    assert score(data, "vqav2", one, "three", protocol="symmetric") == pytest.approx(0.3)
    photo = by_id(data, "vizwiz")["00000"]
    assert photo.prompt.split("\n")[1] == (
        "When the provided information is insufficient, respond with 'Unanswerable'."
    )
    assert photo.split == "unanswerable"
    assert score(data, "textvqa", by_id(data, "textvqa")["034602"], "three") == pytest.approx(0.3)


def test_gqa(data):
    found = by_id(data, "gqa")
    assert found["3"].image == "gqa/images/n1.jpg"
    assert score(data, "gqa", found["20"], "T-shirt.") == 0
    assert score(data, "gqa", found["20"], "T-shirt.", protocol="symmetric") == 1


def test_pope(data):
    found = by_id(data, "pope")
    assert len(found) == 8
    assert found["random-00001"].prompt.startswith("Is there a dog in the image?\nAnswer the question")
    assert found["random-00002"].choices[found["random-00002"].target] == "No"


def test_ai2d(data):
    found = by_id(data, "ai2d")
    assert sorted(found) == ["00002-2.png-0", "00002-2.png-1", "00010-10.png-0", "00010-10.png-1"]
    assert [found[key].split for key in sorted(found)] == ["test", "test", "val", "val"]
    assert found["00002-2.png-1"].prompt.split("\n")[:2] == ["What is Y?", "A. a frog"]
    assert found["00002-2.png-1"].target == 1


def test_refcoco_reads_the_validation_split_and_turns_boxes(data):
    found = by_id(data, "refcocog")
    assert sorted(found) == ["000001-000000", "000001-000001"]
    assert found["000001-000001"].prompt == "person 1"
    assert found["000001-000001"].box == (20, 10, 120, 60)


def test_a_pickle_that_would_run_code_is_refused(data, tmp_path):
    copy = shutil.copytree(data / "refcoco", tmp_path / "refcoco") / "refcoco"
    (copy / "refs(unc).p").write_bytes(pickle.dumps([pathlib_bomb()]))
    with pytest.raises(PruningError, match=r"refs\(unc\)\.p is not the file of phrases"):
        TASKS["refcoco"](tmp_path).questions(None)


def pathlib_bomb():
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    return Bomb()


@pytest.mark.parametrize("name", FILES)
def test_a_limit_takes_the_first_of_every_split(data, name):
    task = TASKS[name](data)
    everything, some = task.questions(None), task.questions(1)
    assert some == first_of_splits(everything, 1)
    assert len(some) == len({question.split for question in everything})
    assert [question.id for question in everything] == [question.id for question in TASKS[name](data).questions(None)]


def test_the_order_does_not_depend_on_that_of_the_file(data, tmp_path):
    rows = json.loads((data / "tallyqa/test.json").read_text())
    (tmp_path / "tallyqa").mkdir()
    (tmp_path / "tallyqa/test.json").write_text(json.dumps(rows[::-1]))
    assert TASKS["tallyqa"](tmp_path).questions(None) == TASKS["tallyqa"](data).questions(None)


def test_the_embedded_questions_are_those_of_the_benchmark(tmp_path):
    questions = TASKS["embedded"](tmp_path).questions(3)
    assert len(questions) == 30
    scene, asked = sample("reading", HELD_OUT, 2)
    one = next(question for question in questions if question.id == "reading-2")
    assert one.prompt == asked.text
    assert TASKS["embedded"](tmp_path).open(one).tobytes() == scene.image.tobytes()
    assert TASKS["embedded"](tmp_path).grade(one, asked.answer, reading()).score == 1


@pytest.mark.parametrize("name", FILES)
def test_what_is_missing_is_said_with_where_to_put_it(tmp_path, name):
    with pytest.raises(PruningError, match=r"which is not there: \w.*\.$") as error:
        TASKS[name](tmp_path).questions(None)
    said = str(error.value)
    assert said.startswith(f"{TASKS[name].title} needs {tmp_path}")
    assert said.endswith(f"{TASKS[name].fetch}.")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", FILES)
def test_missing_pictures_are_said_before_anything_runs(data, tmp_path, name):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("*.jpg", "*.png"))
    task = TASKS[name](tmp_path / "data")
    questions = task.questions(None)
    for refused in (lambda: task.check(questions), lambda: task.open(questions[0])):
        with pytest.raises(PruningError, match="which is not there"):
            refused()


BROKEN = {
    "tallyqa/test.json": ("tallyqa", lambda row: {**row, "answer": 16}, "answer=16"),
    "ocid-ref/val_expressions.json": ("ocid-ref", lambda row: {**row, "bbox": "[600, 10, 64, 48]"}, "left, top"),
}


@pytest.mark.parametrize("path", BROKEN)
def test_rows_that_cannot_be_right_are_refused(data, tmp_path, path):
    name, broken, said = BROKEN[path]
    content = json.loads((data / path).read_text())
    items = content.items() if isinstance(content, dict) else enumerate(content)
    changed = {key: broken(row) for key, row in items}
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(json.dumps(changed if isinstance(content, dict) else list(changed.values())))
    with pytest.raises(PruningError, match=said):
        TASKS[name](tmp_path).questions(None)


@pytest.mark.parametrize("take", [-1, 21])
def test_scenes_beyond_the_sequence_are_refused(tmp_path, take):
    (tmp_path / "ocid-ref").mkdir()
    row = {**local_sets.sentence(0), "take_id": take}
    (tmp_path / "ocid-ref/val_expressions.json").write_text(json.dumps({"1": row}))
    with pytest.raises(PruningError, match=f"take_id={take}"):
        TASKS["ocid-ref"](tmp_path).questions(None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no valid JSON"),
        ("[]", "hold no question"),
        ('[{"x": 1}]', r"not written as it should be: no '\[0\]\.question_id'"),
        ("\xff", r"is not UTF-8 \(line 1\); save it as UTF-8"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, content, said):
    (tmp_path / "tallyqa").mkdir()
    (tmp_path / "tallyqa/test.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(PruningError, match=said):
        TASKS["tallyqa"](tmp_path).questions(None)


def test_an_id_that_occurs_twice_is_refused(data, tmp_path):
    rows = json.loads((data / "tallyqa/test.json").read_text())
    (tmp_path / "tallyqa").mkdir()
    (tmp_path / "tallyqa/test.json").write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(PruningError, match="have the id '300'"):
        TASKS["tallyqa"](tmp_path).questions(None)
