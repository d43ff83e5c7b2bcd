"""Questions are answered by their scene, answers are graded right, and no question can be answered unseen."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm import PruningError
from feathervlm.embedded.questions import SceneQuestion, best_blind, grade, iou, read_box, write_box
from feathervlm.embedded.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES
from feathervlm.embedded.tasks import CLEAR, LOCALIZATION, PLURALS, TASKS, WORDS, sample

MANY = 150


@pytest.fixture(scope="module")
def asked():
    return {task: [sample(task, 7, i) for i in range(MANY)] for task in TASKS}


def named(scene, phrase):
    """The objects that a phrase of attributes fits."""
    words = set(phrase.split()) - {"thing", "the"}
    assert words <= {*SIZES, *COLOURS, *SHAPES}
    return [item for item in scene.items if words <= {item.size, item.colour, item.shape}]


def holds(relation, one, other):
    (x, y), (a, b) = one.centre, other.centre
    return {"left of": x < a, "right of": x > a, "above": y < b, "below": y > b}[relation]


def relation_in(text):
    return next(name for name in ("left of", "right of", "above", "below") if f" {name} " in text)


def answers(scene, question):
    """All right answers to a question, worked out from its text alone."""
    text = question.text.removesuffix(" ?")
    match question.task:
        case "locate" | "cluttered":
            return [write_box(item.box) for item in named(scene, text.removeprefix("where is the "))]
        case "relation":
            phrase, anchor = text.removeprefix("where is the ").split(f" {relation_in(text)} the ")
            (other,) = named(scene, anchor)
            found = [item for item in named(scene, phrase) if item is not other]
            return [write_box(item.box) for item in found if holds(relation_in(text), item, other)]
        case "place":
            phrase, place = text.removeprefix("where is the ").split(" at the ")
            vertical, horizontal = place.split()
            return [
                write_box(item.box)
                for item in named(scene, phrase)
                if (item.centre[1] < SIDE / 2) == (vertical == "top")
                and (item.centre[0] < SIDE / 2) == (horizontal == "left")
            ]
        case "reading":
            return [str(item.digit) for item in named(scene, text.removeprefix("which digit is on the "))]
        case "attribute":
            kind, phrase = text.removeprefix("what ").split(" is the ")
            return [getattr(item, kind) for item in named(scene, phrase)]
        case "counting":
            words = text.removeprefix("how many ").removesuffix(" are there").replace(" things", "")
            singular = {plural: shape for shape, plural in PLURALS.items()}.get(words, words)
            return [str(len(named(scene, singular)))]
        case "existence":
            return ["yes" if named(scene, text.removeprefix("is there a ")) else "no"]
        case "spatial":
            phrase, anchor = text.removeprefix("is the ").split(f" {relation_in(text)} the ")
            (one,), (other,) = named(scene, phrase), named(scene, anchor)
            return ["yes" if holds(relation_in(text), one, other) else "no"]
        case "background":
            return [scene.background]


@pytest.mark.parametrize("task", TASKS)
def test_the_text_has_one_answer_and_it_is_the_given_one(task, asked):
    for scene, question in asked[task]:
        assert answers(scene, question) == [question.answer], question


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_asks_the_same(task, asked):
    scene, question = sample(task, 7, 3)
    assert question == asked[task][3][1]
    assert (scene.pixels == asked[task][3][0].pixels).all()
    assert sample(task, 8, 3)[1] != question or not (sample(task, 8, 3)[0].pixels == scene.pixels).all()
    assert not (sample(task, 7, 3, unseen=True)[0].pixels == scene.pixels).all()


@pytest.mark.parametrize("task", TASKS)
def test_every_word_is_in_the_vocabulary(task, asked):
    assert all(set(question.text.split()) <= set(WORDS) for _, question in asked[task])


@pytest.mark.parametrize("task", LOCALIZATION)
@pytest.mark.full
def test_targets_are_spread_over_the_picture(task):
    """Boxes are uniform among the places where they fit, but that `place` and `relation` avoid unclear middles."""
    boxes = np.array([question.box for _, question in (sample(task, 21, i) for i in range(1200))], float)
    room = SIDE - (boxes[:, 2:] - boxes[:, :2])
    places = boxes[:, :2] / room  # uniform in [0, 1] for a box that is alone
    for share in (places > 0.5).mean(0):
        assert abs(share - 0.5) < 4 * 0.5 / 1200**0.5
    cells = np.histogram2d(*places.T, bins=2, range=[(0, 1)] * 2)[0].ravel()
    assert ((cells - 300) ** 2 / 300).sum() < 16.27  # chi-square, three degrees of freedom, p = 0.001
    for axis in (0, 1):
        thirds = np.histogram(places[:, axis], bins=3, range=(0, 1))[0] / 1200
        assert abs(thirds[0] - thirds[2]) < 0.07
        assert 0.2 < thirds[1] < 0.4


@pytest.mark.parametrize(
    ("task", "most"), [("existence", 0.6), ("spatial", 0.6), ("reading", 0.2), ("background", 0.35), ("counting", 0.45)]
)
def test_answers_are_balanced(task, most, asked):
    counts = Counter(question.answer for _, question in asked[task])
    assert max(counts.values()) / MANY <= most
    assert best_blind([question for _, question in asked[task]]) <= max(counts.values()) / MANY


@pytest.mark.full
def test_yes_cannot_be_told_from_the_words():
    """Size, colour and shape are asked about as often when the answer is yes as when it is no."""
    found = [sample("existence", 31, i)[1] for i in range(1500)]
    for word in (*SIZES, *COLOURS, *SHAPES):
        yes = [question.answer == "yes" for question in found if word in question.text.split()]
        assert abs(np.mean(yes) - 0.5) < 4 * 0.5 / len(yes) ** 0.5, word


def test_a_relation_is_clear(asked):
    for scene, question in asked["spatial"]:
        text = question.text.removeprefix("is the ").removesuffix(" ?")
        phrase, anchor = text.split(f" {relation_in(text)} the ")
        (one,), (other,) = named(scene, phrase), named(scene, anchor)
        assert max(abs(np.subtract(one.centre, other.centre))) >= CLEAR


def test_backgrounds_all_occur(asked):
    assert {question.answer for _, question in asked["background"]} == set(BACKGROUNDS)


boxes = st.tuples(*[st.integers(0, SIDE - 12)] * 2, *[st.integers(12, 60)] * 2).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], SIDE), min(b[1] + b[3], SIDE))
)


@given(boxes)
def test_a_written_box_reads_back_within_a_bin(box):
    read = read_box(write_box(box))
    assert read is not None
    assert np.abs(np.subtract(read, box)).max() <= 1.5
    assert iou(read, box) > 0.5
    assert grade(SceneQuestion("locate", "", write_box(box), box), write_box(box))[0]


@given(boxes, boxes)
def test_iou_is_that_of_painted_masks(one, other):
    masks = []
    for left, top, right, bottom in (one, other):
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top:bottom, left:right] = True
        masks.append(mask)
    assert iou(one, other) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "<loc01> <loc02> <loc03>",
        "<loc01> <loc02> <loc03> <loc04> <loc05>",
        "<loc09> <loc02> <loc03> <loc04>",
        "<loc01> <loc09> <loc03> <loc04>",
        "<loc01> <loc02> <loc03> <loc99>",
        "at <loc01> <loc02> <loc03> <loc04>",
    ],
)
def test_an_invalid_box_is_wrong(text):
    assert read_box(text) is None
    assert grade(SceneQuestion("locate", "", "", (0, 0, 20, 20)), text) == (False, 0.0)


def test_words_are_compared_as_they_are():
    question = SceneQuestion("attribute", "what colour is the circle ?", "red")
    assert grade(question, " red") == (True, None)
    assert grade(question, "red red") == (False, None)
    assert grade(question, "green") == (False, None)


def test_an_unknown_task_is_named():
    with pytest.raises(PruningError, match="no task 'find'; the tasks are locate"):
        sample("find", 0, 0)
