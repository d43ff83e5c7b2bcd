"""A comparison: the answers of the library, errors in their columns, a stop that leaves the model as it was, and lines
that repeat it."""

import contextlib
import io
import os
import shlex
from dataclasses import replace

import pytest

from command_line import document
from feathervlm import PruningError
from feathervlm.app import compare, repeat
from feathervlm.app.compare import Changed, Comparison, Step
from feathervlm.app.jobs import Channel
from feathervlm.app.model_cache import ModelCache
from feathervlm.app.state import PageState
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from feathervlm.inference.streaming import Stopped

METHODS = ("fastv:layer=2", "feather:layers=4+9")
QUESTION = "where is the small yellow square ?"


class Events(Channel):
    """A channel that keeps what it is given, and stops at a step."""

    def __init__(self, until="never"):
        super().__init__()
        self.kept, self.until = [], until

    def emit(self, event):
        self.kept.append(event)
        if isinstance(event, Step) and self.until in event.text:
            self.stop.set()

    @property
    def steps(self):
        return [event.text for event in self.kept if isinstance(event, Step)]


def compared(models, store, channel=None, **changes):
    state = PageState(picture="locate-6", question=QUESTION, rounds=1, methods=METHODS)
    comparison = Comparison.of(replace(state, **changes), store.get("locate-6"))
    compare.run(comparison, models, channel or Events())
    return comparison


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    from feathervlm.app.picture_store import PictureStore

    channel = Events()
    return compared(models, PictureStore(tmp_path_factory.mktemp("pictures")), channel), channel


def test_answers_and_numbers_are_those_of_the_library(models, whole):
    comparison, _ = whole
    answerer, (scene, question) = models.get("embedded"), sample("locate", HELD_OUT, 6)
    assert [column.name for column in comparison.columns] == ["unpruned", *METHODS]
    for column in comparison.columns:
        (answer,) = answerer.ask([Prompt(question.text, (scene.image,))], column.method)
        assert (column.text, column.tokens, column.error) == (answer.text, answer.tokens, "")
        assert len(column.seconds) == 2
        assert column.warmed
        assert column.first_token > 0
        assert set(column.maps) == {True, False}
        if answer.report is not None:
            assert column.per_layer == answer.report.tokens_per_layer[0]
            assert (column.flops, column.kv) == (answer.report.flops_ratio, answer.report.kv_bytes_ratio)
    unpruned, fastv, feather = comparison.columns
    assert (unpruned.views, unpruned.findings, unpruned.flops) == ([], None, 1.0)
    assert [column.right[0] for column in comparison.columns] == [True, False, True]
    assert fastv.box != feather.box
    (finding,) = fastv.findings
    assert finding[0] == "warning"
    assert "bottom third" in finding[1][0]
    assert "rough" not in str([column.findings for column in comparison.columns]), "one picture is what was asked for"


def test_answers_are_streamed_and_steps_are_counted(whole):
    comparison, channel = whole
    steps = [event for event in channel.kept if isinstance(event, Step)]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert {step.steps for step in steps} == {len(steps)}
    assert "fastv:layer=2: scores without RoPE" in channel.steps
    streamed = [event for event in channel.kept if event == Changed(1)]
    assert len(streamed) == comparison.columns[1].tokens


def test_the_right_answer_is_known_for_the_example_question_only(models, store):
    other = compared(models, store, question="where is the large purple square ?", methods=(), rounds=0, maps=False)
    assert other.truth is None
    assert other.columns[0].right is None
    assert not other.columns[0].warmed


def test_what_goes_wrong_with_a_method_is_said_in_its_column(models, store):
    specs = ("nothing", "fastv:layer=40", "fastervlm:encoder_layer=99", "feather:layers=4+9")
    comparison = compared(models, store, methods=specs, rounds=0, maps=False)
    errors = [column.error for column in comparison.columns]
    assert [bool(error) for error in errors] == [False, True, True, True, False]
    assert "no method 'nothing'" in errors[1]
    assert "beyond this model's 16 layers" in errors[2]
    assert all("\n" not in error for error in errors)
    assert comparison.columns[4].text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": " "}, "There is no question"),
        ({"question": "where is the zebra ?"}, "zebra"),
        ({"model": "/no/such"}, "There is no model directory '/no/such'"),
        ({"methods": tuple(f"fastv:layer={n}" for n in range(1, 6))}, "5 methods"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(models, store, changes, words):
    with pytest.raises(PruningError, match=words):
        compared(models, store, **changes)


@pytest.mark.parametrize("until", ["fastv:layer=2: answering", "without RoPE", "warnings"])
def test_a_stop_leaves_the_model_as_it_was(models, store, until):
    model = models.get("embedded").model
    before = {name: len(part._forward_pre_hooks) + len(part._forward_hooks) for name, part in model.named_modules()}
    with pytest.raises(Stopped):
        compared(models, store, Events(until))
    after = {name: len(part._forward_pre_hooks) + len(part._forward_hooks) for name, part in model.named_modules()}
    assert after == before
    assert compared(models, store, rounds=0, maps=False).columns[2].right[0]


def test_the_python_lines_repeat_the_answers(whole, models, tmp_path, monkeypatch):
    comparison, _ = whole
    monkeypatch.chdir(tmp_path)
    code = repeat.python_lines(comparison, models.spec)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "lines.py", "exec"), {})
    assert [line for line in printed.getvalue().splitlines() if "<loc" in line] == [
        f"{column.name}: {column.text}" for column in comparison.columns
    ]
    from command_line import cli

    for line, column in zip(repeat.commands(comparison, models.spec).splitlines(), comparison.columns[1:], strict=True):
        words = shlex.split(line)
        assert words[:2] == ["feathervlm", "run"]
        found = document(cli(*words[1:], "--json", "--repeats", "1"))
        assert found["answers"] == {"unpruned": comparison.columns[0].text, "pruned": column.text}


def test_lines_for_another_model_and_a_file_of_the_user(demo, tmp_path, monkeypatch):
    from feathervlm.app.picture_store import PictureStore

    models, store = ModelCache(ModelSpec(str(demo), attention="eager")), PictureStore(tmp_path)
    stored = store.add(demo / "scene.png", 'it\'s "mine".png')
    state = PageState(str(demo), stored.key, "Where's the house?", ("uniform",), tokens=4, rounds=0, maps=False)
    comparison = Comparison.of(state, stored)
    compare.run(comparison, models, Channel())
    (tmp_path / stored.name).write_bytes((demo / "scene.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(repeat.python_lines(comparison, models.spec), "lines.py", "exec"), {})
    for column in comparison.columns:
        assert f"{column.name}: {column.text}" in printed.getvalue()
    (words,) = map(shlex.split, repeat.commands(comparison, models.spec).splitlines())
    assert words[words.index("--attn-implementation") + 1] == "eager"
    assert os.path.exists(words[words.index("--image") + 1])


def test_a_page_for_others_keeps_to_its_model():
    with pytest.raises(PruningError, match="with the model embedded only; start `feathervlm app --model`"):
        ModelCache(ModelSpec(), others=False).get("/etc")
