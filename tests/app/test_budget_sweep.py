"""A sweep: the answers of the library at every budget, and where they turn, in words."""

import pytest

from feathervlm import PruningError
from feathervlm.app import sweep
from feathervlm.app.jobs import Channel
from feathervlm.app.state import PageState
from feathervlm.app.sweep import BUDGETS, Point, Sweep, turning_point
from feathervlm.inference.prompts import Prompt

STATE = PageState(picture="locate-6", question="where is the small yellow square ?", sweep="fastv:layer=2")


def test_every_budget_is_asked(models, store):
    swept = Sweep.of(STATE, store.get("locate-6"))
    channel = Channel()
    sweep.run(swept, models, channel)
    assert [point.budget for point in swept.points] == list(BUDGETS)
    assert (BUDGETS[0], BUDGETS[-1]) == (1.0, 0.03)
    prompt = Prompt(swept.question, (swept.stored.picture,))
    for point in (swept.points[0], swept.points[4], swept.points[-1]):
        (answer,) = models.get("embedded").ask([prompt], f"fastv:layer=2,keep={point.budget}")
        assert point.text == answer.text
        assert point.share == answer.report.average_tokens / 256
    assert swept.points[0].text == swept.unpruned
    shares = [point.share for point in swept.points]
    assert shares == sorted(shares, reverse=True)
    assert swept.turn.startswith("The answer is that of the unpruned model down to keep=")


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ("aaa", "The answer is that of the unpruned model down to keep=0.1."),
        ("aab", "The answer is that of the unpruned model down to keep=0.5, and turns at keep=0.1."),
        ("baa", "The answer differs from that of the unpruned model already at keep=1."),
        ("aba", "The answer is that of the unpruned model down to keep=1, and turns at keep=0.5 (it returns at 0.1)."),
        ("", ""),
    ],
)
def test_where_the_answer_turns(answers, sentence):
    points = [Point(budget, text) for budget, text in zip((1.0, 0.5, 0.1), answers, strict=False)]
    assert turning_point("keep", "a", points) == sentence


def test_budgets_that_cannot_be_run_are_left_out():
    points = [Point(1.0, "a"), Point(0.5, error="It does not fit."), Point(0.1, "b")]
    assert "down to keep=1, and turns at keep=0.1." in turning_point("keep", "a", points)


@pytest.mark.parametrize(("spec", "words"), [("uniform", "no budget"), ("nothing", "no method"), ("", "not a method")])
def test_a_method_without_a_budget_is_refused(store, spec, words):
    state = PageState(picture="locate-6", question="what ?", sweep=spec)
    with pytest.raises(PruningError, match=words):
        Sweep.of(state, store.get("locate-6"))
