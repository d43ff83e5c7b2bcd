"""Who answers: asked in batches or one by one, boxes read as each family writes them, and what cannot work refused."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as tf
from PIL import Image

from families.processors import PROCESSORS
from family_cases import FAMILY_CASES
from feathervlm import PruningError, embedded
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.embedded.questions import BOXES
from feathervlm.evaluation.tasks.jsonl import JsonlData
from feathervlm.evaluation.tasks.study_data import EmbeddedData
from feathervlm.families import FAMILIES
from feathervlm.inference import loading, prompts
from feathervlm.inference import model_spec as wanted
from feathervlm.inference.answerer import check, describe, load
from feathervlm.inference.model_spec import UNPRUNED, Wanted, fingerprint

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}MARK {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
)
MARKS = {"llava": "<image>", "qwen2_5_vl": "<|image_pad|>", "gemma3": "<boi>"}
WHERE = {"image": "a.png", "prompt": "word7 word8", "box": [10, 20, 60, 50]}
WHAT = {"image": "b.png", "prompt": "word9", "answer": "word6"}


@pytest.fixture
def ask(tmp_path):
    """A data set with these lines, about two pictures."""
    Image.linear_gradient("L").resize((101, 67)).save(tmp_path / "a.png")
    Image.radial_gradient("L").resize((90, 140)).save(tmp_path / "b.png")

    def make(*lines):
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return JsonlData.read(tmp_path / "mine.jsonl")

    return make


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A directory with a tiny model of a family; its processor is the real one, without what needs torchvision."""

    def make(name, template=True):
        processor, folder = PROCESSORS[name](), tmp_path / name
        processor.chat_template = TEMPLATE.replace("MARK", MARKS[name]) if template else None
        FAMILY_CASES[name].model().save_pretrained(folder)
        monkeypatch.setattr(loading, "load_processor", lambda place: processor)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def shipped():
    return load(Wanted(), EmbeddedData(2, 0))


def items_of(data):
    return [data.item(number) for number in range(len(data.tasks()))]


def test_the_embedded_model_answers_a_batch_as_one_by_one(shipped):
    items = items_of(EmbeddedData(2, 5))
    together = shipped.answer(items)
    assert together == [shipped.answer([item])[0] for item in items]
    grades = [shipped.grade(item, answer) for item, answer in zip(items, together, strict=True)]
    assert sum(right for right, _ in grades) >= 15
    assert all((iou is None) == (item.box is None) for (_, iou), item in zip(grades, items, strict=True))
    assert (shipped.batch, shipped.max_new_tokens, shipped.model.dtype) == (40, 5, torch.float32)
    assert (shipped.boxes, shipped.model.device.type) == (BOXES, "cpu")


def test_it_answers_as_its_benchmark_does(shipped):
    result = embedded.benchmark(tasks=["locate", "existence"], n=3, seed=5, progress=False)
    for task, measured in result.tasks.items():
        items = [item for item in items_of(EmbeddedData(3, 5)) if item.task == task]
        answers = shipped.answer(items)
        assert answers == measured.answers
        assert [shipped.grade(*pair)[0] for pair in zip(items, answers, strict=True)] == measured.right.tolist()


def test_the_embedded_model_answers_a_users_questions(ask, tmp_path):
    scene = EmbeddedData(1, 3).item(0)
    large = scene.picture.resize((384, 256), Image.Resampling.NEAREST)
    large.save(tmp_path / "a.png")
    box = [side * scale for side, scale in zip(scene.box, (3, 2, 3, 2), strict=True)]
    data = ask({"image": "a.png", "prompt": scene.prompt, "box": box}, WHAT | {"prompt": "is there a sign ?"})
    check(Wanted(), data, ["feather", UNPRUNED])
    answering = load(Wanted(batch=1), data)
    assert (answering.boxes, answering.batch) == (BOXES, 1)
    answers = answering.answer(items_of(data))
    right, overlap = answering.grade(data.item(0), answers[0])
    assert right
    assert overlap > 0.6


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_family_answers_a_users_questions(name, ask, tiny):
    data, who = ask(WHERE, WHAT), Wanted(tiny(name), max_new_tokens=4)
    check(who, data, ["feather", UNPRUNED])
    answering = load(who, data)
    assert answering.family is FAMILIES[name]
    assert answering.boxes is FAMILIES[name].boxes
    assert answering.batch == 1
    items = items_of(data)
    answers = answering.answer(items)
    assert answers == [answering.answer([item])[0] for item in items]
    assert all(len(answer.split()) == 4 for answer in answers)
    assert answering.grade(items[0], answers[0]) == (False, 0.0)
    assert answering.grade(items[1], "Word6.") == (True, None)


def test_a_model_without_a_chat_template(ask, tiny):
    data = ask(WHERE | {"prompt": "<image> word7"}, WHAT | {"prompt": "word8 <image> word9"})
    who = Wanted(tiny("llava", template=False), max_new_tokens=3)
    check(who, data, [])
    answers = load(who, data).answer(items_of(data))
    assert all(len(answer.split()) == 3 for answer in answers)
    with pytest.raises(PruningError, match=r"Question '2' of mine\.jsonl: The prompt has 0 of 1 image placeholders"):
        check(who, ask(WHERE | {"prompt": "<image> word7"}, WHAT), [])
    with pytest.raises(PruningError, match=r"batch=2 needs a chat template.*leave it at 1"):
        check(replace(who, batch=2), data, [])


def test_pixels_of_the_resized_picture(ask, tiny):
    data = ask(WHERE)
    answering, item = load(Wanted(tiny("qwen2_5_vl")), data), data.item(0)
    inputs = prompts.prepare(answering.processor, item.prompt, [item.picture])
    _, rows, cols = inputs["image_grid_thw"][0].tolist()
    shown = cols * 4, rows * 4
    assert answering.resized(item.picture.size) == shown != item.picture.size
    left, top, right, bottom = (
        round(side * to / of) for side, to, of in zip(item.box, shown * 2, item.picture.size * 2, strict=True)
    )
    found, overlap = answering.grade(item, f'[{{"bbox_2d": [{left}, {top}, {right}, {bottom}], "label": "x"}}]')
    assert found
    assert overlap > 0.95
    assert not answering.grade(item, f"[{left}, {top}, {shown[0] + 5}, {bottom}]")[0]  # outside what it was shown


CROP = {"do_center_crop": True, "size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({}, (0, 0, 101, 67)), (CROP, (17, 0, 84, 67)), ({"do_pad": True}, (0, -17, 101, 84))],
    ids=["squeezed", "cropped", "padded"],
)
def test_fractions_are_of_what_the_processor_shows(settings, shown, ask, tiny):
    """LLaVA's are of a padded square, unless the processor squeezes the picture or cuts its centre out."""
    data = ask(WHERE | {"box": [27, 20, 60, 50]})
    answering, item = load(Wanted(tiny("llava")), data), data.item(0)
    for name, value in settings.items():
        setattr(answering.processor.image_processor, name, value)
    left, top, right, bottom = shown
    wide, high = right - left, bottom - top
    a, b, c, d = item.box
    answer = f"[{(a - left) / wide:.2f}, {(b - top) / high:.2f}, {(c - left) / wide:.2f}, {(d - top) / high:.2f}]"
    assert answering.grade(item, answer)[1] > 0.93
    assert answering.read(item, "no box") is None


def test_a_resized_picture_of_unknown_size(ask, tiny):
    data = ask(WHERE)
    answering = replace(load(Wanted(tiny("llava")), data), boxes=FAMILIES["qwen2_5_vl"].boxes)
    with pytest.raises(PruningError, match="does not tell how it resizes pictures"):
        answering.grade(data.item(0), "[1, 2, 3, 4]")


def test_a_batch_of_a_family_is_padded_on_the_left(ask, tiny):
    data = ask(WHERE, WHAT, WHAT | {"prompt": "word7 word8 word9 word10 word11"})
    answering = load(Wanted(tiny("qwen2_5_vl"), batch=3), data)
    answering.processor.tokenizer.padding_side = "right"
    mask = prompts.prepare_all(answering.processor, [(item.picture, item.prompt) for item in items_of(data)])[
        "attention_mask"
    ]
    assert mask[:, -1].all()
    assert not mask[:, 0].all()
    items = items_of(data)
    assert answering.answer(items) == [answering.answer([item])[0] for item in items]


def test_boxes_of_a_family_that_documents_none(ask, tiny):
    where = tiny("gemma3")
    with pytest.raises(
        PruningError, match=r"not documented how a gemma3 writes boxes, so mine\.jsonl cannot be graded"
    ):
        check(Wanted(where), ask(WHERE), [])
    with pytest.raises(PruningError, match="not documented"):
        load(Wanted(where), ask(WHERE))
    check(Wanted(where), ask(WHAT), [])
    answering = load(Wanted(where), ask(WHAT))
    assert answering.boxes is None
    with pytest.raises(PruningError, match="not known how Gemma 3 writes boxes, as question '1' needs"):
        answering.read(ask(WHERE).item(0), "[1, 2, 3, 4]")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "no/such/model"}, "There is no model directory"),
        ({"device": "abacus"}, "There is no device 'abacus'"),
        ({"dtype": "float3"}, "There is no dtype 'float3'"),
        ({"attention": "none"}, "Attention 'none' does not work here"),
    ],
)
def test_settings_that_do_not_fit(changes, said):
    with pytest.raises(PruningError, match=said):
        check(Wanted(**changes), EmbeddedData(1, 0), [])


@pytest.mark.parametrize("name", ["batch", "max_new_tokens"])
def test_numbers_are_positive(name):
    with pytest.raises(PruningError, match=f"{name}=0 is not positive"):
        Wanted(**{name: 0})


@pytest.mark.parametrize("method", ["fether", "fastv:layer=99", "feather:keep=2"])
def test_a_method_that_does_not_fit(method):
    with pytest.raises(PruningError):
        check(Wanted(), EmbeddedData(1, 0), ["feather", method])


def test_the_embedded_questions_need_location_tokens(tiny):
    with pytest.raises(PruningError, match=r"answered in <loc00> to <loc31> tokens, .*; give --data FILE\.jsonl"):
        check(Wanted(tiny("llava")), EmbeddedData(1, 0), [])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("where is the elephant ?", "Question '2' of mine.jsonl: The embedded model does not know 'elephant'"),
        ("<image> where is the circle ?", "Question '2' of mine.jsonl: The prompt holds the image placeholder <image>"),
    ],
)
def test_prompts_that_the_embedded_model_cannot_take(prompt, said, ask):
    fine = WHAT | {"prompt": "Is there a red circle?"}
    check(Wanted(), ask(fine), [])
    with pytest.raises(PruningError, match=re.escape(said)):
        check(Wanted(), ask(fine, WHAT | {"prompt": prompt}), [])


def test_nothing_is_read_that_need_not_be(ask, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.setattr(prompts, "open_picture", None)
    check(Wanted(), ask(WHAT | {"prompt": "is there a sign ?"}), ["feather"])
    check(Wanted(), EmbeddedData(1, 0), [UNPRUNED, "fastv:layer=3"])
    describe(Wanted())


def test_a_padding_token_is_needed_in_batches(ask, tiny):
    who, data = Wanted(tiny("llava"), batch=2), ask(WHERE)
    loading.load_processor("").tokenizer.pad_token = None
    with pytest.raises(PruningError, match="batch=2 needs a padding token"):
        check(who, data, [])


def test_what_tells_models_apart(tmp_path, ask, tiny):
    mine = describe(Wanted())
    facts = {"name": "embedded", "model_type": "llava", "embedded": True, "depth": 16, "device": "cpu"}
    facts |= {"dtype": "float32", "attention": "sdpa", "max_new_tokens": 5, "batch": 40}
    assert {key: mine[key] for key in facts} == facts
    assert set(mine) == {*facts, "fingerprint", "versions"}
    assert mine["versions"]["transformers"] == tf.__version__
    assert json.loads(json.dumps(mine)) == mine
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    same = describe(Wanted(str(copy), dtype="auto"))
    assert same == mine | {"name": str(copy)}
    check(Wanted(str(copy)), EmbeddedData(1, 0), [])
    config = copy / "processor_config.json"
    config.write_text(config.read_text().replace("128", "64"))
    assert fingerprint(str(copy)) != mine["fingerprint"]
    other = describe(Wanted(tiny("llava")))
    assert (other["embedded"], other["depth"], other["dtype"], other["batch"]) == (False, 6, "float32", 1)


def test_fingerprints_of_directories_and_the_hub(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PruningError, match=r"holds no \.safetensors file"):
        fingerprint(str(tmp_path))
    for found in ("models--me--tiny/snapshots/0123abc/config.json", "elsewhere/config.json"):
        monkeypatch.setattr(wanted, "cached_file", lambda place, name, found=found: found)
        if "snapshots" in found:
            assert fingerprint("me/tiny") == "0123abc"
        else:
            with pytest.raises(PruningError, match="cannot be told which commit of me/tiny"):
                fingerprint("me/tiny")


def test_missing_weights_are_told(tmp_path, ask):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    model, _ = embedded.load()
    states = model.state_dict()
    del states["lm_head.weight"]
    model.save_pretrained(copy, state_dict=states)
    with pytest.warns(UserWarning, match="feathervlm found no weights for 1 tensors"):
        load(Wanted(str(copy)), EmbeddedData(1, 0))
