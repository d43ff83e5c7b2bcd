"""The state of a page: a link holds all of it, and wrong links are one sentence."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm import PruningError
from feathervlm.app.state import QUESTION, ROUNDS, TABS, TOKENS, PageState, check_methods, check_question

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
STATES = st.builds(
    PageState,
    model=TEXT,
    picture=TEXT,
    question=TEXT,
    methods=st.lists(TEXT.map(str.strip).filter(bool), max_size=4, unique=True).map(tuple),
    sweep=TEXT,
    layer=st.integers(0, 99),
    tokens=st.integers(0, TOKENS),
    rounds=st.integers(0, ROUNDS),
    maps=st.booleans(),
    tab=st.sampled_from(TABS),
)


def read(link):
    return PageState.from_link(parse_qsl(link.removeprefix("?"), keep_blank_values=True))


@given(STATES)
def test_a_link_holds_the_whole_state(state):
    assert read(state.link()) == state


@pytest.mark.parametrize("link", ["", "?", "?__theme=dark", "?token=secret", "?layer=3"])
def test_an_address_without_a_state_is_none(link):
    assert read(link) is None


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("?question=a&layer=-1", "layer='-1'"),
        ("?question=a&layer=%D9%A3", "not a number from 0 to 999"),
        ("?question=a&tokens=5000", "0 to 1024"),
        ("?question=a&rounds=x", "rounds='x'"),
        ("?question=a&maps=maybe", "yes, no"),
        ("?question=a&tab=other", "compare, sweep"),
        ("?" + "&".join(f"method=m{number}" for number in range(5)), "5 methods do not fit"),
        ("?question=" + "a" * (QUESTION + 1), "2001 characters, and 2000 is the limit"),
    ],
)
def test_a_wrong_link_is_one_sentence(link, words):
    with pytest.raises(PruningError, match=words):
        read(link)


def test_methods_count_once_and_without_empty_ones():
    assert check_methods(["fastv", "", " feather ", "fastv"]) == ("fastv", "feather")


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_an_empty_question_is_refused(text):
    with pytest.raises(PruningError, match="There is no question; write one"):
        check_question(text)
