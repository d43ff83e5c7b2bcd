"""Arguments as lmms-eval hands them over: a spec cut at its commas, numbers turned into numbers, task settings."""

import inspect

import pytest

from feathervlm import PruningError, methods
from feathervlm.integrations.lmms_eval.arguments import Generation, read_batch_size, read_method
from feathervlm.methods.base import REGISTRY
from feathervlm.methods.lookup import get

NESTED = "before-llm:method=(fastv:layer=3,keep=0.5)"


@pytest.mark.parametrize(
    ("method", "more", "spec"),
    [
        ("feather", {}, "feather"),
        ("feather:keep=0.3", {"layers": "8+16"}, "feather:keep=0.3,layers=8+16"),
        ("feather", {"keep": 0.3, "stride": 2}, "feather:keep=0.3,stride=2"),
        ('"feather:keep=0.3,layers=8+16"', {}, "feather:keep=0.3,layers=8+16"),
        ("fastv:layer=3", {"rope": False, "keep": 144}, "fastv:layer=3,rope=false,keep=144"),
        ("fastv", {"over": "all"}, "fastv:over=all"),
    ],
)
def test_a_cut_spec_is_whole_again(method, more, spec):
    assert read_method(method, more) == get(spec)


def test_lmms_eval_cuts_as_expected():
    """The text that a user types, through lmms-eval's own parser: with and without quotes."""
    pytest.importorskip(
        "lmms_eval", reason="lmms-eval is not installed; see tests/integrations/lmms_eval/requirements.txt"
    )
    from lmms_eval.utils import simple_parse_args_string

    for spec in (
        "feather:keep=0.3,layers=8+16,stride=2",
        "fastv:keep=0.5,rope=false",
        "fastv:keep=144",
        NESTED,
        "feather",
    ):
        for written in (spec, f'"{spec}"'):
            arguments = simple_parse_args_string(f"pretrained=embedded,method={written},batch_size=4")
            assert arguments.pop("pretrained") == "embedded"
            assert arguments.pop("batch_size") == 4
            assert read_method(arguments.pop("method"), arguments) == get(spec)


def test_no_parameter_of_a_method_is_an_argument_of_the_model():
    """Else a method's parameter could not be given; `method` itself, the spec of another, must stand in quotes."""
    pytest.importorskip(
        "lmms_eval", reason="lmms-eval is not installed; see tests/integrations/lmms_eval/requirements.txt"
    )
    from feathervlm.integrations.lmms_eval.model import FeatherVLM

    own = set(inspect.signature(FeatherVLM).parameters) - {"method"}
    assert methods.available()
    assert not [(name, field) for name, cls in REGISTRY.items() for field in cls.__dataclass_fields__ if field in own]


def test_no_method():
    assert read_method("none", {}) is read_method("unpruned", {}) is None
    with pytest.raises(PruningError, match=r"keep=0\.3"):
        read_method("none", {"keep": 0.3})
    with pytest.raises(PruningError, match="no method 'fether'"):
        read_method("fether", {"keep": 0.3})


def test_batch_sizes():
    assert read_batch_size("8") == read_batch_size(8) == 8
    for wrong in ("auto", 0, "-1", 1.5):
        with pytest.raises(PruningError, match="positive number"):
            read_batch_size(wrong)


def test_what_a_task_asks_for():
    given = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": 1.0,
        "num_beams": 1,
        "do_sample": False,
        "until": ["\n\n"],
    }
    assert Generation.of(given) == Generation(max_new_tokens=16, until=("\n\n",))
    assert Generation.of({"until": "END", "image_aspect_ratio": "original"}) == Generation(
        until=("END",), ignored=("image_aspect_ratio",)
    )
    assert Generation.of({}).max_new_tokens == 128
    assert Generation.of({"do_sample": True, "temperature": 0}) == Generation()
    assert Generation.of({"do_sample": False, "temperature": 0.7}) == Generation()


@pytest.mark.parametrize("given", [{"temperature": 0.2}, {"do_sample": True}, {"num_beams": 4}])
def test_what_is_not_greedy_is_refused(given):
    with pytest.raises(PruningError, match="do_sample=False"):
        Generation.of(given)


def test_an_answer_ends_before_the_first_stop():
    assert Generation(until=("END", "STOP")).cut(" one STOP two END three ") == "one"
    assert Generation(until=("",)).cut("all of it") == "all of it"
