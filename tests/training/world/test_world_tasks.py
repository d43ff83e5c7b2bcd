"""Questions are answered by their scene, answers are graded right, and no question can be answered unseen."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm import PruningError
from feathervlm.core.boxes import iou
from feathervlm.embedded.questions import SceneQuestion, best_blind
from training.build import VOCABULARY
from training.world.questions import LOCATIONS, grade, read_box, write_box
from training.world.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Scene, arrange
from training.world.tasks import CLEAR, LOCALIZATION, PLURALS, TASKS, WORDS, sample


@pytest.fixture(scope="module")
def asked(arranged):
    """The questions of each task about the shared scenes, where they allow one."""
    found = {}
    for number, task in enumerate(TASKS):
        rng = np.random.default_rng([9, number])
        pairs = [(scene, TASKS[task].ask(scene, rng)) for scene in arranged]
        found[task] = [(scene, question) for scene, question in pairs if question]
    return found


def named(scene, phrase):
    """The things that a phrase of attributes fits."""
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
    assert len(asked[task]) > 40
    for scene, question in asked[task]:
        assert answers(scene, question) == [question.answer], question


@pytest.mark.parametrize("task", TASKS)
def test_every_word_is_in_the_vocabulary(task, asked):
    for _, question in asked[task]:
        assert set(question.text.split()) <= set(WORDS)
        assert set(question.answer.replace("><", "> <").split()) <= set(VOCABULARY)


def test_the_same_seed_asks_the_same():
    scene, question = sample("place", 7, 3)
    again, same = sample("place", 7, 3)
    assert question == same
    assert (scene.pixels == again.pixels).all()
    for other, _ in (sample("place", 8, 3), sample("place", 7, 4), sample("place", 7, 3, unseen=True)):
        assert not (other.pixels == scene.pixels).all()


def test_every_reference_uses_no_more_attributes_than_half_of_the_time_are_needed(asked):
    """Where fewer attributes would do, half of the questions name fewer."""
    lengths = Counter(len(question.text.replace(" thing", "").split()) for _, question in asked["locate"])
    # "where is the small red circle ?" has seven words.
    assert 0.3 < lengths[7] / sum(lengths.values()) < 0.9
    assert min(lengths) < 7


@pytest.mark.parametrize("task", ["place", "relation"])
def test_a_place_or_a_neighbour_is_named_only_where_it_is_needed(task, asked):
    separator = {"place": " at the "}
    for scene, question in asked[task]:
        text = question.text.removeprefix("where is the ")
        phrase = text.split(separator.get(task) or f" {relation_in(question.text)} the ")[0]
        assert len(named(scene, phrase)) > 1


@pytest.mark.parametrize("task", LOCALIZATION)
@pytest.mark.full
def test_targets_are_spread_over_the_picture(task):
    """Every thing is asked for as often as others, so targets have no place that they prefer."""
    rng = np.random.default_rng(21)
    nothing = np.empty((0, 0, 3), np.uint8), np.empty((0, 0), np.int16)
    centres = []
    while len(centres) < 1200:
        background, items = arrange(rng, TASKS[task].world)
        scene = Scene(tuple(items), background, *nothing)
        for question in (TASKS[task].ask(scene, rng) for _ in range(6)):
            if question:
                left, top, right, bottom = question.box
                centres.append(((left + right) / 2, (top + bottom) / 2))
    centres = np.array(centres) / SIDE
    # Questions about one scene depend on each other, so fewer are counted.
    for share in (centres > 0.5).mean(0):
        assert abs(share - 0.5) < 4 * 0.5 / 600**0.5
    for axis in (0, 1):
        thirds = np.histogram(centres[:, axis], bins=3, range=(0, 1))[0] / len(centres)
        assert abs(thirds[0] - thirds[2]) < 0.09
        assert 0.2 < thirds[1] < 0.5


@pytest.mark.parametrize(
    ("task", "most"),
    [("existence", 0.62), ("spatial", 0.62), ("reading", 0.2), ("background", 0.35), ("counting", 0.35)],
)
def test_answers_are_balanced(task, most, asked):
    questions = [question for _, question in asked[task]]
    counts = Counter(question.answer for question in questions)
    assert max(counts.values()) / len(questions) <= most
    assert best_blind(questions) <= max(counts.values()) / len(questions) + 0.1


@pytest.mark.full
def test_yes_cannot_be_told_from_the_words(arranged):
    """Size, colour and shape are asked about as often when the answer is yes as when it is no."""
    rng = np.random.default_rng(31)
    found = [TASKS["existence"].ask(scene, rng) for scene in arranged for _ in range(20)]
    for word in (*SIZES, *COLOURS, *SHAPES):
        yes = [question.answer == "yes" for question in found if question and word in question.text.split()]
        assert abs(np.mean(yes) - 0.5) < 5 * 0.5 / len(yes) ** 0.5, word


def test_a_relation_is_clear(asked):
    for scene, question in asked["spatial"]:
        text = question.text.removeprefix("is the ").removesuffix(" ?")
        phrase, anchor = text.split(f" {relation_in(text)} the ")
        (one,), (other,) = named(scene, phrase), named(scene, anchor)
        assert max(abs(np.subtract(one.centre, other.centre))) >= CLEAR


def test_all_answers_occur(asked):
    assert {question.answer for _, question in asked["background"]} == set(BACKGROUNDS)
    assert {question.answer for _, question in asked["attribute"]} >= {"red", "ring"}
    assert {question.answer for _, question in asked["counting"]} >= set("01234567")


boxes = st.tuples(*[st.integers(0, SIDE - 10)] * 2, *[st.integers(10, 64)] * 2).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], SIDE), min(b[1] + b[3], SIDE))
)


@given(boxes)
def test_a_written_box_reads_back_within_a_bin(box):
    read = read_box(write_box(box))
    assert read is not None
    assert np.abs(np.subtract(read, box)).max() <= SIDE / len(LOCATIONS)
    assert iou(read, box) > 0.5
    assert grade(SceneQuestion("locate", "", write_box(box), box), write_box(box))[0]


@pytest.mark.parametrize(
    "text", ["", "yes", "<loc01> <loc02> <loc03>", "<loc09> <loc02> <loc03> <loc04>", "<loc01> <loc02> <loc03> <loc99>"]
)
def test_an_invalid_box_is_wrong(text):
    assert grade(SceneQuestion("locate", "", "", (0, 0, 20, 20)), text) == (False, 0.0)


def test_words_are_compared_as_they_are():
    question = SceneQuestion("attribute", "what colour is the circle ?", "red")
    assert grade(question, " red") == (True, None)
    assert grade(question, "red red") == (False, None)


def test_an_unknown_task_is_named():
    with pytest.raises(PruningError, match="no task 'find'; the tasks are locate"):
        sample("find", 0, 0)
