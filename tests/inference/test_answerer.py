"""Answers: the same in batches and one by one, pruned and not, with counts, times and reports."""

from dataclasses import replace

import pytest
import torch

from feathervlm import PruningError
from feathervlm.embedded.tasks import TASKS, sample
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt, prepare


@pytest.fixture(scope="module")
def shipped():
    return Answerer(load(ModelSpec()))


@pytest.fixture(scope="module")
def prompts():
    pairs = [sample(task, 3, index) for index in range(2) for task in TASKS]
    return [Prompt(question.text, (scene.image,)) for scene, question in pairs]


def texts(answers):
    return [answer.text for answer in answers]


def test_a_batch_is_answered_as_one_by_one(shipped, prompts):
    together = texts(shipped.ask(prompts))
    assert together == [shipped.ask([prompt])[0].text for prompt in prompts]
    assert (shipped.batch, shipped.model.dtype, shipped.model.device.type) == (40, torch.float32, "cpu")
    small = Answerer(replace(shipped.loaded, settings=replace(shipped.loaded.settings, batch=3)))
    assert together == texts(small.ask(prompts))
    assert [len(batch.prompts) for batch in small.batches(prompts[:7])] == [3, 3, 1]


def test_a_method_prunes_and_reports(shipped, prompts):
    answers = shipped.ask(prompts, "fastv:layer=3,keep=0.1")
    assert texts(answers) != texts(shipped.ask(prompts))
    assert len({id(answer.report) for answer in answers}) == 1
    assert [answer.place for answer in answers] == list(range(len(prompts)))
    assert all(len(kept) == 25 for kept in answers[0].report.stages[0].kept)
    assert shipped.ask(prompts[:1], UNPRUNED)[0].report is None
    report = shipped.look(prompts[:2], "fastv:layer=3,keep=0.1")
    for ours, theirs in zip(report.stages[0].kept, answers[0].report.stages[0].kept, strict=False):
        assert ours.tolist() == theirs.tolist()


def test_tokens_and_times_are_counted(shipped, prompts):
    answer, longer = shipped.ask(prompts[:2])
    assert answer.prompt_tokens == prepare(shipped.processor, prompts[:1])["input_ids"].shape[1]
    assert longer.prompt_tokens == prepare(shipped.processor, prompts[1:2])["input_ids"].shape[1]
    assert answer.tokens == len(answer.text.split()) + 1, "the end token counts"
    assert answer.first_token_seconds is None
    (timed,) = shipped.answer(shipped.prepare(prompts[:1]), timed=True)
    assert 0 < timed.first_token_seconds < timed.seconds
    assert shipped.ask(prompts[:1], max_new_tokens=2)[0].tokens == 2


def test_a_choice_is_the_likeliest_first_token(shipped):
    pairs = [sample("existence", 3, index) for index in range(4)]
    prompts = [Prompt(question.text, (scene.image,)) for scene, question in pairs]
    answers = shipped.ask(prompts, choices=("no", "yes"))
    vocabulary = shipped.processor.tokenizer.get_vocab()
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = shipped.model(**prepare(shipped.processor, [prompt])).logits[0, -1]
        assert answer.text == ("no", "yes")[int(logits[[vocabulary["no"], vocabulary["yes"]]].argmax())]
        assert answer.tokens == 1
    with pytest.raises(PruningError, match="'True' is not one token"):
        shipped.ask(prompts, choices=("True", "False"))


def test_a_batch_may_have_prompts_without_pictures(shipped, prompts):
    alone = Prompt("what is the background ?")
    answers = shipped.ask([prompts[0], alone], "fastv:layer=3,keep=0.1")
    assert [len(kept) for kept in answers[0].report.stages[0].kept] == [25, 0]
    assert shipped.ask([alone], "fastv:layer=3,keep=0.1")[0].report is None


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_family_is_padded_on_the_left_and_answers_as_one_by_one(name, tiny_family, pictures):
    answerer = Answerer(load(ModelSpec(tiny_family(name), max_new_tokens=4, batch=3)))
    answerer.processor.tokenizer.padding_side = "right"
    words = ("word7 word8", "word9", "word7 word8 word9 word10 word11")
    prompts = [Prompt(text, (picture,)) for text, picture in zip(words, (*pictures, pictures[0]), strict=True)]
    mask = prepare(answerer.processor, prompts)["attention_mask"]
    assert mask[:, -1].all()
    assert not mask[:, 0].all()
    together = texts(answerer.ask(prompts))
    assert together == [answerer.ask([prompt])[0].text for prompt in prompts]
    assert all(len(answer.split()) == 4 for answer in together)


def test_a_model_without_a_chat_template(tiny_family, pictures):
    answerer = Answerer(load(ModelSpec(tiny_family("llava", template=False), max_new_tokens=3, batch=2)))
    prompts = [Prompt(text, (pictures[0],)) for text in ("<image> word7", "word8 <image> word9")]
    assert answerer.batch == 1
    assert all(len(answer.text.split()) == 3 for answer in answerer.ask(prompts))
    with pytest.raises(PruningError, match="has 0 of 1 image placeholders"):
        answerer.ask([Prompt("word7", (pictures[0],))])
    with pytest.raises(PruningError, match="2 prompts at once need a chat template"):
        answerer.prepare(prompts)


def test_a_method_that_does_not_fit_is_refused(shipped, prompts):
    with pytest.raises(PruningError, match="99"):
        shipped.ask(prompts[:1], "fastv:layer=99")
