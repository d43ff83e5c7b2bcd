"""What does not fit together is refused before weights are read."""

import re
from dataclasses import replace

import pytest

from feathervlm import PruningError
from feathervlm.evaluation.preflight import check
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.inference import loading
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.utils import pictures

WHERE = {"image": "a.png", "prompt": "word7 word8", "box": [10, 20, 60, 50]}
WHAT = {"image": "b.png", "prompt": "word9", "answer": "word6"}


@pytest.fixture(scope="module")
def scenes():
    return QuestionSet(Embedded(), Embedded(n=1).questions(None))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_family_takes_a_users_questions(name, lines, tiny_family):
    checked = check(ModelSpec(tiny_family(name)), [lines(WHERE, WHAT)], ["feather", UNPRUNED])
    assert checked.settings.batch == 1


def test_a_model_without_a_chat_template(lines, tiny_family):
    spec = ModelSpec(tiny_family("llava", template=False))
    questions = lines(WHERE | {"prompt": "<image> word7"}, WHAT | {"prompt": "word8 <image> word9"})
    check(spec, [questions], [])
    with pytest.raises(PruningError, match=r"batch=2 needs a chat template.*leave it at 1"):
        check(replace(spec, batch=2), [questions], [])
    with pytest.raises(PruningError, match=r"Question '2' of mine\.jsonl: The prompt has 0 of 1 image placeholders"):
        check(spec, [lines(WHERE | {"prompt": "<image> word7"}, WHAT)], [])


def test_a_padding_token_is_needed_in_batches(lines, tiny_family):
    spec = ModelSpec(tiny_family("llava"), batch=2)
    loading.load_processor("").tokenizer.pad_token = None
    with pytest.raises(PruningError, match="batch=2 needs a padding token"):
        check(spec, [lines(WHERE)], [])


def test_boxes_of_a_family_that_documents_none(lines, tiny_family):
    spec = ModelSpec(tiny_family("gemma3"))
    with pytest.raises(
        PruningError, match=r"not documented how a gemma3 writes boxes, so mine\.jsonl cannot be graded"
    ):
        check(spec, [lines(WHERE)], [])
    assert check(spec, [lines(WHAT)], []).boxes is None


def test_the_embedded_questions_need_location_tokens(scenes, tiny_family):
    with pytest.raises(PruningError, match=r"answered in <loc00> to <loc31> tokens, .*give --data FILE\.jsonl"):
        check(ModelSpec(tiny_family("llava")), [scenes], [])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("where is the elephant ?", "Question '2' of mine.jsonl: The embedded model does not know 'elephant'"),
        ("<image> where is the circle ?", "Question '2' of mine.jsonl: The prompt holds the image placeholder <image>"),
    ],
)
def test_prompts_that_the_embedded_model_cannot_take(prompt, message, lines):
    known = WHAT | {"prompt": "Is there a red circle?"}
    check(ModelSpec(), [lines(known)], [])
    with pytest.raises(PruningError, match=re.escape(message)):
        check(ModelSpec(), [lines(known, WHAT | {"prompt": prompt})], [])


def test_no_weights_and_no_pictures_are_read(lines, scenes, monkeypatch):
    questions = lines(WHAT | {"prompt": "is there a sign ?"})
    monkeypatch.setattr(loading, "load_model", None)
    monkeypatch.setattr(pictures, "decode", None)
    check(ModelSpec(), [questions], ["feather"])
    check(ModelSpec(), [scenes], [UNPRUNED, "fastv:layer=3"])
