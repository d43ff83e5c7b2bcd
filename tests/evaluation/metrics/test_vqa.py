"""Normalizations on the vectors that were verified with the public scorers, soft accuracy by hand and naively."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.evaluation.metrics import vqa
from feathervlm.evaluation.metrics.gqa import normal_gqa, score_gqa

# Text: VQAv2's prediction, VQAv2's right answer, VizWiz's prediction, EvalAI, GQA.
VERIFIED = {
    "The Two dogs.": ("2 dogs", "The Two dogs", "2 dogs", "2 dogs", "the two dogs"),
    "T-shirt": ("t shirt", "T shirt", "t shirt", "t shirt", "tshirt"),
    "1,000": ("1000", "1000", "1000", "1000", "1000"),
    "5.5": ("5.5", "5.5", "5.5", "5.5", "55"),
    "isnt": ("isn't", "isnt", "isn`t", "isn't", "isnt"),
    "U.S.": ("us", "US", "us", "us", "us"),
    "yes, it is": ("yes it is", "yes it is", "yes it is", "yes it is", "yes it is"),
    "Bob's cafe": ("bob's cafe", "Bob's cafe", "bob's cafe", "bob 's cafe", "bobs cafe"),
    "none": ("0", "none", "0", "0", "none"),
    "An": ("", "An", "", "", "an"),
    "a/b": ("b", "a b", "b", "b", "ab"),
    "coca-cola 12,oz-x": (
        "coca cola 12 oz x", "coca cola 12 oz x", "coca cola 12 oz x", "coca cola 12oz x", "cocacola 12ozx",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", VERIFIED)
def test_verified_vectors(text):
    found = (vqa.normal_vqa, vqa.strip_marks, vqa.normal_vizwiz, vqa.normal_evalai, normal_gqa)
    assert tuple(normal(text) for normal in found) == VERIFIED[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # the public table has it this way round
        ("somebodyd", "somebodyd"),
        ("wed", "wed"),  # a word of its own
        ("oclock", "o'clock"),
        ("two\nthe\tten", "2 10"),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_words(text, expected):
    assert vqa.normal_vqa(text) == expected


def test_the_table_of_contractions():
    table = vqa.CONTRACTIONS["'"]
    assert len(table) == 114
    assert all(word.replace("'", "") == key.replace("'", "") for key, word in table.items())
    # Stage P leaves no backtick, so VizWiz's keys that have one can never be met.
    assert vqa.normal_vizwiz("couldn`tve") == "couldn tve"
    assert vqa.normal_vizwiz("couldnt've") == "couldnt've"


def naive(answer, people):
    parts = []
    for place in range(len(people)):
        others = people[:place] + people[place + 1 :]
        parts.append(min(1, others.count(answer) / 3))
    return sum(parts) / len(parts)


@given(answer=st.sampled_from("abc"), people=st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_soft_accuracy_is_the_mean_over_leaving_each_person_out(answer, people):
    assert vqa.soft_accuracy(answer, people) == pytest.approx(naive(answer, people))


@pytest.mark.parametrize(("same", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_by_hand(same, expected):
    assert vqa.soft_accuracy("x", ["x"] * same + ["y"] * (10 - same)) == pytest.approx(expected)


def test_the_protocols_differ_in_the_right_answers():
    people = ["The Two dogs."] * 10
    assert vqa.score_vqav2("two dogs", people, "symmetric") == 1
    assert vqa.score_vqav2("two dogs", people, "paper") == 0
    assert vqa.score_vqav2("Blue", ["blue!"] * 10, "paper") == 0  # the mark becomes a space, which stays
    assert vqa.score_vizwiz("isnt", ["isnt"] * 10, "paper") == 0
    assert vqa.score_vizwiz("isnt", ["isn't"] * 10, "symmetric") == 1
    assert vqa.score_vizwiz("Unanswerable.", ["unanswerable"] * 10, "paper") == 1
    assert vqa.score_textvqa("Bob's", ["bob's"] * 3 + ["x"] * 7) == pytest.approx(0.9)


def test_gqa():
    assert score_gqa(" Yes. ", "yes", "paper") == 1
    assert score_gqa("t-shirt", "t-shirt", "paper") == 0
    assert score_gqa("t-shirt", "t-shirt", "symmetric") == 1
    assert score_gqa("", "yes", "symmetric") == 0
