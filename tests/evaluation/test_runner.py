"""Questions of every origin, asked and graded: with boxes, costs and kept cells."""

import pytest
from PIL import Image

from feathervlm import embedded
from feathervlm.evaluation.runner import Asker, by_method, open_work, run
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec

METHOD = "fastv:layer=3,keep=0.1"


@pytest.fixture(scope="module")
def shipped():
    return load(ModelSpec())


def questions_of(task):
    return QuestionSet(task, task.questions(None))


def test_the_embedded_questions_are_answered_as_in_the_benchmark(shipped):
    questions = questions_of(Embedded(n=3, seed=5, splits=("locate", "existence")))
    samples = Asker(shipped).answer(questions, range(6), {UNPRUNED: None, "pruned": METHOD})
    unpruned = embedded.benchmark(tasks=["locate", "existence"], n=3, seed=5, progress=False)
    pruned = embedded.benchmark(METHOD, ["locate", "existence"], 3, 5, progress=False, unpruned=unpruned)
    for name, result in ((UNPRUNED, unpruned), ("pruned", pruned)):
        for task, measured in result.tasks.items():
            own = [sample for sample in samples[name] if sample.split == task]
            assert [sample.answer for sample in own] == measured.answers
            assert [sample.right for sample in own] == measured.right.tolist()
    for sample in samples["pruned"]:
        assert sample.tokens == pytest.approx((3 * 256 + 13 * 25) / 16)
        assert 0 < sample.flops < 1
        assert [mask.sum() for mask in sample.masks()] == [25]
        assert (sample.shape, sample.covers) == ((1, 16, 16), (0, 0, 128, 128))
        assert (sample.target is None) == (sample.iou is None) == (sample.top is None) == (sample.split != "locate")
    assert all(sample.kept == () and sample.tokens is None for sample in samples[UNPRUNED])


def test_boxes_are_in_pixels_of_the_users_picture(shipped, lines, tmp_path):
    asked, scene = questions_of(Embedded(n=1, seed=3)).item(0)
    scene.resize((384, 256), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    box = [side * scale for side, scale in zip(asked.box, (3, 2, 3, 2), strict=True)]
    where = {"image": "a.png", "prompt": asked.prompt, "box": box}
    questions = lines(where, {"image": "a.png", "prompt": "is there a sign ?", "answer": "yes"})
    (one,) = Asker(shipped).answer(questions, [0], {METHOD: METHOD})[METHOD]
    (whole,) = Asker(shipped).answer(questions, [0], {UNPRUNED: None})[UNPRUNED]
    assert whole.right
    assert whole.iou > 0.6
    assert one.covers == (0, 0, 384, 256)
    assert one.target == pytest.approx([side / 128 for side in asked.box])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_family_answers_in_the_length_of_the_model(name, lines, tiny_family):
    spec = ModelSpec(tiny_family(name), max_new_tokens=4)
    where = {"image": "a.png", "prompt": "word7 word8", "box": [10, 20, 60, 50]}
    questions = lines(where, {"image": "b.png", "prompt": "word9", "answer": "word6"})
    samples = Asker(load(spec), length=4).answer(questions, [0, 1], {"feather": "feather"})["feather"]
    assert all(len(sample.answer.split()) == 4 for sample in samples)
    assert (samples[0].valid, samples[0].iou, samples[1].valid) == (False, 0.0, None)


def test_work_is_done_once_chunk_by_chunk_or_method_by_method(tmp_path, monkeypatch):
    questions = [
        questions_of(Embedded(n=2, seed=1, splits=("locate",))),
        questions_of(Embedded(n=1, splits=("place",))),
    ]
    store = AnswerStore(tmp_path / "answers", {})
    methods = (UNPRUNED, METHOD)
    work = open_work(questions, methods, store)
    assert [(piece.part, piece.chunk, piece.methods) for piece in work] == [(0, (0, 1), methods), (1, (0,), methods)]
    pieces = by_method(work, methods)
    assert [(piece.part, piece.methods) for piece in pieces] == [
        (part, (method,)) for method in methods for part in (0, 1)
    ]
    done = []
    run(ModelSpec(), questions, pieces[:3], store, done=done.append)
    assert done == pieces[:3]
    assert open_work(questions, methods, store) == [pieces[3]]
    monkeypatch.setattr("feathervlm.inference.loading.load", None)
    run(ModelSpec(), questions, [], store)
