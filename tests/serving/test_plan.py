"""What can be served, how many tokens it keeps, and how the rest is refused."""

import re

import pytest

import feathervlm
import method_cases
from feathervlm.core.layout import Plane
from feathervlm.serving.plan import ServingPlan, plan_of

GRID = (1, 16, 16)
SERVED = {
    "uniform:layer=0": 64,
    "random:layer=0": 64,
    "divprune:keep=0.25": 64,
    "divprune:keep=0.1,positions=renumber": 25,
    "knn:layer=0,count=40,features=projected": 40,
    "pool": 64,
    "visionzip": 63,
    "cdpruner": 64,
    "fastervlm:keep=0.25": 64,
    "before-llm:method=(feather:layers=4+9,fixed=true)": 10,
    "before-llm:method=(fastv:layer=9,keep=0.25)": 64,
    "before-llm:method=(pyramiddrop:layers=4+8+12)": 32,
}
REFUSED = {
    "feather:layers=4+9": r"write before-llm:method=\(feather:layers=4\+9,fixed=true\)",
    "fastv": r"write before-llm:method=\(fastv\)",
    "uniform:layer=3": r"write uniform:layer=0, or before-llm:method=\(uniform:layer=3\)",
    "tome": "merges inside the vision encoder",
    "divprune:positions=stretch": "positions=stretch",
    "shuffled-positions": "positions=shuffle",
    "nonsense": "There is no method 'nonsense'",
    "divprune:keep=7.5": "keep=7.5",
}


@pytest.mark.parametrize(("spec", "count"), SERVED.items())
def test_the_number_of_tokens_is_known_beforehand(spec, count):
    plan = plan_of(spec, 16)
    assert plan.kept(GRID) == count
    assert plan.placeholders(GRID) == (count if "renumber" in spec else 256)


@pytest.mark.parametrize(("spec", "reason"), REFUSED.items())
def test_what_cannot_be_served_is_refused_in_one_sentence(spec, reason):
    with pytest.raises(feathervlm.PruningError, match=reason) as error:
        ServingPlan(spec, 16)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("before-llm:method=(feather:layers=4+9)", "fixed=true"),
        ("prumerge:layer=0", "depends on the picture"),
        ("text-only", "keeps no visual token"),
    ],
)
def test_a_count_that_depends_on_the_picture_is_refused(spec, reason):
    with pytest.raises(feathervlm.PruningError, match=reason):
        ServingPlan(spec, 16)


@pytest.mark.parametrize("name", sorted(method_cases.METHODS))
def test_every_method_is_served_or_refused_with_a_form_that_is_served(name):
    """What a refusal recommends has to work."""
    method = method_cases.METHODS[name]
    try:
        ServingPlan(str(method), 6)
    except feathervlm.PruningError as error:
        written = re.search(r"; write (.*?)(?:, or (before-llm.*))?\.$", str(error))
        for form in filter(None, written.groups() if written else ()):
            ServingPlan(form, 6)


def test_which_methods_read_the_text_and_need_a_scoring_pass():
    def facts(spec):
        plan = ServingPlan(spec, 16)
        return plan.reads_text, plan.scores

    assert facts("divprune") == (False, False)
    assert facts("cdpruner") == (True, False)
    assert facts("before-llm:method=(fastv)") == (True, True)
    assert facts("before-llm:method=(random:layer=3)") == (False, True)
    assert facts("before-llm:method=(v2drop:layers=1+3+5)") == (True, True)  # layers mix text into what they measure


def test_a_picture_of_several_planes_has_one_count():
    picture = (Plane((1, 4, 4)), Plane((1, 8, 8), tiles=(2, 2)))
    assert ServingPlan("divprune:keep=0.25", 16).kept(picture) == 20
