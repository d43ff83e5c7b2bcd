"""The model that lmms-eval runs: the same answers as the embedded benchmark, everything told, nothing made up."""

import json
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from feathervlm import PruningError
from feathervlm.core.boxes import REGION
from feathervlm.embedded import benchmark, load
from feathervlm.embedded.questions import BOXES, SIDE, read_box
from feathervlm.embedded.tasks import TASKS, sample
from feathervlm.evaluation.metrics.grounding import literal_box
from feathervlm.inference.prompts import Prompt, prepare

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; see tests/integrations/lmms_eval/requirements.txt")

ROOT = Path(__file__).parents[3]
EMBEDDED = "feathervlm_embedded"
N = 2
METHOD = "fastv:layer=3,keep=0.05"


def make(**arguments):
    from feathervlm.integrations.lmms_eval.model import FeatherVLM

    return FeatherVLM("embedded", **arguments)


def ask(text, picture=None):
    shown = [] if picture is None else [{"type": "image", "url": picture}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def questions(task, n):
    return [sample(task, 7, index) for index in range(n)]


def answers(found):
    return {(one["doc"]["task"], one["doc"]["index"]): one["filtered_resps"][0] for one in found["samples"][EMBEDDED]}


@pytest.fixture(scope="module")
def found(evaluate):
    return {
        method: evaluate(
            "feathervlm",
            [EMBEDDED],
            model_args=f"pretrained=embedded,method={method}",
            batch_size=8,
            limit=N * len(TASKS),
        )
        for method in ("none", METHOD)
    }


@pytest.mark.parametrize("method", ["none", METHOD])
def test_answers_are_those_of_the_benchmark(found, method):
    expected = benchmark(None if method == "none" else method, n=N, progress=False)
    assert answers(found[method]) == {
        (name, index): text for name, task in expected.tasks.items() for index, text in enumerate(task.answers)
    }
    figures = found[method]["results"][EMBEDDED]
    assert {name: figures[f"{name},none"] for name in TASKS} == {
        name: pytest.approx(task.accuracy.value) for name, task in expected.tasks.items()
    }
    boxes = [text for task in expected.tasks.values() if task.iou is not None for text in task.answers]
    assert figures["parse_failures,none"] == pytest.approx(sum(read_box(text) is None for text in boxes) / len(boxes))


def test_pruning_changes_answers(found):
    assert answers(found["none"]) != answers(found[METHOD])


def test_samples_tell_what_was_pruned(found):
    _, processor = load()
    for one in found[METHOD]["samples"][EMBEDDED]:
        scene, question = sample(one["doc"]["task"], one["doc"]["seed"], one["doc"]["index"])
        (counts,) = one["token_counts"]
        assert counts["method"] == METHOD
        assert counts["visual_tokens"] == 256
        assert counts["kept_tokens"] == [12]
        assert counts["average_tokens"] == pytest.approx((3 * 256 + 13 * 12) / 16)
        assert 0 < counts["selection_seconds"] < 10
        inputs = prepare(processor, [Prompt(question.text, (scene.image,))])
        assert counts["input_tokens"] == inputs["input_ids"].shape[1]
        assert counts["output_tokens"] == min(len(one["filtered_resps"][0].split()) + 1, 5)  # and the end token
    assert found[METHOD]["throughput"]["avg_average_tokens"] == pytest.approx((3 * 256 + 13 * 12) / 16)
    assert all(one["token_counts"][0].keys() == {"input_tokens", "output_tokens", "method"} for one in
               found["none"]["samples"][EMBEDDED])  # fmt: skip


@pytest.mark.full
def test_the_command_writes_it_all_down(found, monkeypatch, tmp_path, capsys):
    """`lmms-eval` itself: the same answers in its file of samples, and a table."""
    from lmms_eval.cli.dispatch import main

    from feathervlm.integrations import lmms_eval

    options = {
        "--model": "feathervlm",
        "--model_args": f"pretrained=embedded,method={METHOD}",
        "--include_path": str(lmms_eval.TASKS),
        "--tasks": EMBEDDED,
        "--limit": "10",
        "--output_path": str(tmp_path),
    }
    monkeypatch.setattr(
        "sys.argv", ["lmms-eval", *(word for pair in options.items() for word in pair), "--log_samples"]
    )
    main()
    (written,) = tmp_path.rglob("*_samples_*.jsonl")
    samples = [json.loads(line) for line in written.read_text().splitlines()]
    expected = found[METHOD]["samples"][EMBEDDED][:10]
    assert [one["filtered_resps"] for one in samples] == [one["filtered_resps"][0] for one in expected]
    for one, other in zip(samples, expected, strict=True):
        (mine,), (theirs,) = one["token_counts"], other["token_counts"]
        assert mine.pop("selection_seconds") > 0
        assert mine == {key: value for key, value in theirs.items() if key != "selection_seconds"}
    assert "parse_failures" in capsys.readouterr().out


def test_an_average_is_solved_on_the_first_picture(requests_for):
    model = make(method="fastv", layer=3, average=150)
    scene, question = questions("background", 1)[0]
    asked = [({}, ask("what is the background ?"), {}), ({}, ask(question.text, scene.image), {"max_new_tokens": 5})]
    text, shown = (one.token_counts.to_dict() for one in model.generate_until(requests_for(model, asked)))
    assert "visual_tokens" not in text
    assert shown["method"].startswith("fastv:layer=3,keep=0.4")
    assert shown["average_tokens"] == pytest.approx(150, abs=0.5)


def test_a_batch_may_have_no_one_or_two_pictures(requests_for):
    scenes = [scene.image for scene, _ in questions("background", 2)]
    text = "what is the background ?"
    two = [
        {"role": "user", "content": [*({"type": "image", "url": shown} for shown in scenes), *ask(text)[0]["content"]]}
    ]
    asked = [({}, messages, {}) for messages in (ask(text), ask(text, scenes[0]), two)]
    model = make(method=METHOD, batch_size=3)
    together = model.generate_until(requests_for(model, asked))
    alone = [model.generate_until(requests_for(model, [one]))[0] for one in asked]
    assert [one.text for one in together] == [one.text for one in alone]
    counts = [one.token_counts.to_dict() for one in together]
    assert [count["visual_tokens"] for count in counts] == [0, 256, 512]
    assert [count["kept_tokens"] for count in counts] == [[0], [12], [24]]
    assert [count["average_tokens"] for count in counts] == [0, pytest.approx(57.75), pytest.approx(115.5)]
    assert [count["input_tokens"] for count in counts] == [one.token_counts.input_tokens for one in alone]


def test_requests_with_other_settings_come_back_in_order(requests_for):
    scenes = questions("locate", 5)
    asked = [
        ({}, ask(question.text, scene.image), {"max_new_tokens": 2 + number % 2, "until": ["none"]})
        for number, (scene, question) in enumerate(scenes)
    ]
    model = make(method="feather", batch_size=4)
    together = [one.text for one in model.generate_until(requests_for(model, asked))]
    model = make(method="feather")
    assert together == [model.generate_until(requests_for(model, [one]))[0].text for one in asked]
    assert [text.count("<loc") for text in together] == [2, 3, 2, 3, 2]


def test_a_choice_is_that_of_the_first_logits(requests_for):
    scenes = [*questions("existence", 4), *questions("spatial", 4)]
    choices = ["no", "yes"]
    asked = [({}, ask(question.text, scene.image), {"choices": choices}) for scene, question in scenes]
    lm = make(batch_size=3)
    found = [one.text for one in lm.generate_until(requests_for(lm, asked))]
    model, processor = load()
    for text, (scene, question) in zip(found, scenes, strict=True):
        with torch.inference_mode():
            logits = model(**prepare(processor, [Prompt(question.text, (scene.image,))])).logits[0, -1]
        ids = [processor.tokenizer.convert_tokens_to_ids(choice) for choice in choices]
        assert text == choices[int(logits[ids].argmax())]
    assert set(found) == set(choices)


def test_a_choice_wins_over_what_would_be_written(requests_for):
    """The most likely of all tokens is a colour; the choices are none."""
    scene, _ = questions("background", 1)[0]
    model = make()
    asked = [({}, ask("what is the background ?", scene.image), {"choices": ["left", "right"]})]
    (result,) = model.generate_until(requests_for(model, asked))
    assert result.text in ("left", "right")
    assert result.token_counts.output_tokens == 1


def test_a_choice_must_be_a_token_of_its_own(requests_for):
    scene, question = questions("existence", 1)[0]
    model = make()
    asked = [({}, ask(question.text, scene.image), {"choices": ["True", "False"]})]
    with pytest.raises(PruningError, match="'True' is not one token"):
        model.generate_until(requests_for(model, asked))


@pytest.mark.parametrize("method", ["none", "fastv:layer=3,keep=0.02"])
def test_boxes_are_asked_and_read_as_the_family_does(requests_for, method):
    scenes = questions("locate", 8)
    prefix, suffix = BOXES.prompt.split("{object}")
    asked = [
        (
            {"what": q.text.removeprefix(prefix).removesuffix(suffix)},
            ask("asked otherwise", scene.image),
            {"box": "what"},
        )
        for scene, q in scenes
    ]
    model = make(method=method, batch_size=8)
    for result, (_, question) in zip(model.generate_until(requests_for(model, asked)), scenes, strict=True):
        box = read_box(result.token_counts.to_dict()["written"])
        if box is None:
            assert result.text == "no box"
        else:
            assert [SIDE * float(edge) for edge in result.text[1:-1].split(",")] == pytest.approx(box, abs=1e-3)
            assert method != "none" or box == pytest.approx(question.box, abs=16)


def test_fractions_are_of_the_whole_picture(demo):
    """The random LLaVA is shown the middle square of a wide picture; its fractions are of that."""
    from feathervlm.integrations.lmms_eval.model import NO_BOX, FeatherVLM

    model = FeatherVLM(str(demo))
    asked = model.box_prompt("it", [Image.new("RGB", (200, 100))], "the cup")
    assert asked.prompt.text == REGION + "the cup"
    assert literal_box(model.place("[0.25, 0.50, 0.50, 0.75]", asked.size)) == pytest.approx((0.375, 0.5, 0.5, 0.75))
    assert model.place("nowhere", asked.size) == NO_BOX


def test_boxes_can_be_asked_in_the_words_of_the_task(requests_for):
    scene, question = questions("locate", 1)[0]
    model = make(boxes="task")
    asked = [({"what": "thing"}, ask(question.text, scene.image), {"box": "what", "max_new_tokens": 5})]
    (result,) = model.generate_until(requests_for(model, asked))
    assert read_box(result.text) is not None


def test_an_error_in_a_batch_is_raised(requests_for):
    scene, question = questions("locate", 1)[0]
    model = make(batch_size=2)
    asked = [({}, ask(text, scene.image), {}) for text in (question.text, "where is the zebra ?")]
    with pytest.raises(PruningError, match="does not know 'zebra'"):
        model.generate_until(requests_for(model, asked))


def test_an_error_of_the_model_ends_the_evaluation(evaluate, monkeypatch):
    model = make()

    def fail(**inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.answerer.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, [EMBEDDED], limit=2)


def test_what_it_cannot_do_is_refused(requests_for):
    model = make()
    with pytest.raises(PruningError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(PruningError, match="generate_until"):
        model.generate_until_multi_round([])
    video = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    for messages, options, reason in [
        (video, {}, "takes pictures"),
        (ask("what is the background ?"), {"temperature": 0.7}, "sampling"),
        (ask("what is the background ?"), {"box": "what"}, "in 0 pictures"),
    ]:
        with pytest.raises(PruningError, match=reason):
            model.generate_until(requests_for(model, [({"what": "sign"}, messages, options)]))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PruningError, match="in one process, not 2"):
        make()


def test_a_model_that_cannot_be_asked_is_refused(demo, tmp_path):
    from feathervlm.integrations.lmms_eval.model import FeatherVLM

    for file in demo.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(PruningError, match="no chat template"):
        FeatherVLM(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"method": "feather", "pace": 3}, "'pace'"),
        ({"pace": 3}, "no argument of the model"),
        ({"average": 100}, "no method"),
        ({"method": "fastv", "average": 1000, "layer": 3}, "out of reach"),
        ({"boxes": "mine"}, "neither family nor task"),
        ({"batch_size": "auto"}, "not supported"),
        ({"device": "abacus"}, "no device"),
        ({"method": "fastv:layer=99"}, "99"),
    ],
)
def test_arguments_are_checked(requests_for, arguments, reason):
    def attempt():
        scene, question = questions("locate", 1)[0]
        model = make(**arguments)
        model.generate_until(requests_for(model, [({}, ask(question.text, scene.image), {})]))

    with pytest.raises(PruningError, match=reason):
        attempt()


def test_the_model_is_let_go(evaluate):
    model = make(method="feather")
    assert evaluate(model, [EMBEDDED], limit=1)["results"]
    assert not hasattr(model, "answerer")


def test_the_entry_point_names_the_model():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, name = points["feathervlm"].split(":")
    registry = ModelRegistryV2()
    registry.register_manifest(getattr(import_module(module), name)())
    assert registry.get_model_class("feathervlm").__name__ == "FeatherVLM"
