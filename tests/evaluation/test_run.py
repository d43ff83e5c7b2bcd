"""The runner on a tiny random model: the same answers however the work is cut, and after a kill at any moment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feathervlm import PruningError, embedded
from feathervlm.evaluation import runner
from feathervlm.evaluation.run import EvalRequest, run
from feathervlm.evaluation.shard import Shard
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks import TASKS, base
from feathervlm.evaluation.tasks.base import CHUNK, QuestionSet, Task
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt, prepare

NAMES = ("vsr", "tallyqa", "ocid-ref", "refcoco", "textvqa", "pope")
METHODS = ("fastv:layer=1,keep=0.25", "feather")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Noise does not end by itself."""
    monkeypatch.setattr(Task, "longest", 6)


@pytest.fixture
def request_to(tiny, data, tmp_path):
    """A request to the tiny model."""
    return EvalRequest(ModelSpec(str(tiny), batch=8), METHODS, NAMES, data, tmp_path / "out")


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """The files of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "longest", 6)
        out = tmp_path_factory.mktemp("whole")
        done = run(EvalRequest(ModelSpec(str(tiny), batch=8), METHODS, NAMES, data, out))
    assert done.missing == 0
    return samples(out)


def samples(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in sorted((out / "samples").rglob("*.jsonl"))}


def test_every_question_is_answered_once_by_every_method(whole, data):
    assert len(whole) == len(NAMES) * 3
    for name in NAMES:
        questions = TASKS[name](data).questions(None)
        runs = [[json.loads(line) for line in text.splitlines()] for path, text in whole.items() if f"/{name}/" in path]
        for rows in runs:
            assert [row["id"] for row in rows] == [question.id for question in questions]
            assert [row["split"] for row in rows] == [question.split for question in questions]
    unpruned = [text for path, text in whole.items() if UNPRUNED in path]
    assert all('"tokens": null' in line for text in unpruned for line in text.splitlines())
    tokens = {
        json.loads(line)["tokens"] for path, text in whole.items() if "fastv" in path for line in text.splitlines()
    }
    assert tokens == {(64 + 3 * 16) / 4}
    answers = {tuple(json.loads(line)["answer"] for line in text.splitlines()) for text in whole.values()}
    assert len(answers) > len(NAMES), "methods differ somewhere"


def test_batches_do_not_matter(request_to, whole):
    run(replace(request_to, spec=replace(request_to.spec, batch=1)))
    assert samples(request_to.out) == whole


def test_two_processes_give_what_one_gives(request_to, whole):
    first = run(replace(request_to, shard=Shard(0, 2, 0)))
    assert first.missing > 0
    assert samples(request_to.out) == {}
    second = run(replace(request_to, shard=Shard(1, 2, 1)))
    assert second.missing == 0
    assert samples(request_to.out) == whole
    parts = [path for path in (request_to.out / "answers").glob("*.jsonl") if ".part1." in path.name]
    assert parts, "the second process has files of its own"


def test_a_run_that_was_killed_goes_on_without_loss_or_double_counting(request_to, whole, monkeypatch):
    monkeypatch.setattr(base, "CHUNK", 2)

    def stop_after(count):
        def told(what, done, total):
            if done >= count:
                raise KeyboardInterrupt

        return told

    for shard, count in ((Shard(0, 2), 3), (Shard(1, 2), 4), (Shard(), 5)):
        with pytest.raises(KeyboardInterrupt):
            run(replace(request_to, shard=shard), stop_after(count))
        for path in (request_to.out / "answers").glob("*.jsonl"):
            path.write_bytes(path.read_bytes()[:-9])  # killed while writing
    told = []
    done = run(request_to, lambda what, done, total: told.append((done, total)))
    assert done.missing == 0
    assert told[-1][0] == told[-1][1] < len(NAMES) * 8, "some answers were kept"
    assert samples(request_to.out) == whole
    asked_again = []
    run(request_to, lambda what, done, total: asked_again.append(total))
    assert set(asked_again) == {0}


def test_a_method_that_is_added_later_meets_the_same_questions(request_to, whole):
    small = replace(request_to, tasks=("vsr",), methods=METHODS[:1])
    run(small)
    loaded = []
    run(replace(small, methods=METHODS), lambda what, done, total: loaded.append(total))
    assert loaded[-1] == 4
    assert samples(request_to.out) == {path: text for path, text in whole.items() if "/vsr/" in path}


def test_another_model_or_protocol_in_the_same_folder_is_refused(request_to):
    small = replace(request_to, tasks=("vsr",), methods=())
    run(small)
    with pytest.raises(PruningError, match=r"holds an evaluation of something else \(protocol\)"):
        run(replace(small, protocol="paper"))


def test_other_questions_in_the_same_folder_are_asked_anew(request_to):
    small = replace(request_to, tasks=("tallyqa",), methods=())
    assert len(run(replace(small, limit=1)).samples["tallyqa"][UNPRUNED]) == 2
    assert len(run(small).samples["tallyqa"][UNPRUNED]) == 4


def test_a_choice_is_the_likeliest_of_the_first_tokens(request_to, tiny, data):
    """One by one, with a forward of the model, and by names of tokens."""
    names = ("vsr", "tallyqa", "pope", "ai2d")
    done = run(replace(request_to, tasks=names, methods=()))
    loaded = load(ModelSpec(str(tiny), dtype="float32"))
    model, processor = loaded.model, loaded.processor
    vocabulary = processor.tokenizer.get_vocab()
    seen = set()
    for name in names:
        task = TASKS[name](data)
        for question, found in zip(task.questions(None), done.samples[name][UNPRUNED], strict=True):
            inputs = prepare(processor, [Prompt(question.prompt, (task.open(question),))])
            with torch.no_grad():
                logits = model(**inputs).logits[0, -1]
            scores = [float(logits[vocabulary[choice]]) for choice in question.choices]
            assert found.answer == question.choices[scores.index(max(scores))]
            assert found.score == (found.answer == question.choices[question.target])
            seen.add(found.answer)
    assert len(seen) > 2


def test_the_embedded_task_answers_as_the_benchmark(tmp_path):
    method = "fastv:layer=2,keep=0.25"
    done = run(EvalRequest(ModelSpec(), (method,), ("embedded",), tmp_path, tmp_path / "out", limit=2))
    unpruned = embedded.benchmark(n=2, progress=False)
    pruned = embedded.benchmark(method, n=2, progress=False, unpruned=unpruned)
    for run_name, expected in ((UNPRUNED, unpruned), (method, pruned)):
        mine = done.samples["embedded"][run_name]
        for task, result in expected.tasks.items():
            found = [sample for sample in mine if sample.split == task]
            assert [sample.answer for sample in found] == result.answers
            assert [sample.score for sample in found] == result.right.tolist()
            if result.iou is not None:
                assert [sample.iou for sample in found] == pytest.approx(result.iou.tolist(), abs=1e-4)
    tokens = [sample.tokens for sample in done.samples["embedded"][method]]
    assert sum(tokens) / len(tokens) == pytest.approx(pruned.average_tokens)


def test_boxes_are_read_in_the_format_of_the_family(request_to, monkeypatch):
    """The tiny model's answers are noise, so it is told what to say: LLaVA's fractions of what its processor shows."""
    texts = ["[0.00, 0.00, 1.00, 1.00]", "the box [0.00, 0.00, 1.00, 1.00]."]
    monkeypatch.setattr(
        "feathervlm.inference.answerer.Answerer.answer",
        lambda self, batch, *_, **__: [Answer(text, 9, 9, 0.0) for text in texts[: len(batch.prompts)]],
    )
    found = run(replace(request_to, tasks=("refcoco",), methods=())).samples["refcoco"][UNPRUNED]
    assert [sample.valid for sample in found] == [True, True]
    # A picture of 200 x 200 is shown whole: the true box is 100 x 50 of it.
    assert [sample.iou for sample in found] == [0.125, 0.125]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Shard(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Shard(3, 4, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2, 1)),
    ],
)
def test_which_process_this_is(environment, expected):
    assert Shard.of(environment) == expected


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}])
def test_nonsense_about_processes_is_refused(environment):
    with pytest.raises(PruningError, match="do not say which process this is"):
        Shard.of(environment)


@pytest.mark.parametrize(
    ("shard", "wanted", "expected"),
    [
        (Shard(0, 1, 0), "cuda", "cuda"),
        (Shard(3, 4, 1), "cuda", "cuda:1"),
        (Shard(5, 6, 5), "cuda", "cuda:1"),
        (Shard(3, 4, 1), "cuda:0", "cuda:0"),
        (Shard(3, 4, 1), "cpu", "cpu"),
    ],
)
def test_each_process_has_an_accelerator_of_its_own(monkeypatch, shard, wanted, expected):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert shard.device(torch.device(wanted)) == expected


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_the_chunks_without_gap_or_overlap(request_to, tmp_path, world):
    task = TASKS["tallyqa"](request_to.data)
    asked = [QuestionSet(task, task.questions(None)), QuestionSet(TASKS["pope"](request_to.data), [])]
    parts = []
    for rank in range(world):
        store = AnswerStore(tmp_path / "answers", {}, part=rank)
        parts += [work.chunk for work in runner.open_work(asked, METHODS, store, Shard(rank, world))]
    assert sorted(parts) == sorted(asked[0].chunks)
    assert max(map(len, parts)) <= CHUNK


def test_what_does_not_fit_is_refused_before_weights_are_read(request_to, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_model", fail)
    for changes, said in (
        ({"methods": ("fastv:layer=99",)}, "Layer 99"),
        ({"tasks": ("nope",)}, "no task 'nope'"),
        ({"tasks": ("embedded",)}, "location tokens"),
        ({"spec": ModelSpec()}, "knows only the few words"),
        ({"data": tmp_path / "nowhere"}, "which is not there"),
        ({"spec": ModelSpec("nowhere")}, "nowhere"),
    ):
        with pytest.raises(PruningError, match=said):
            run(replace(request_to, **changes))


def test_choices_that_are_no_tokens_are_refused_before_weights_are_read(request_to, demo, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(PruningError, match="'True' is not one token"):
        run(replace(request_to, spec=ModelSpec(str(demo))))


def test_boxes_of_a_family_that_does_not_say_how_it_writes_them(request_to, monkeypatch):
    monkeypatch.setattr("feathervlm.families.llava.Llava.boxes", None)
    with pytest.raises(PruningError, match="leave ocid-ref, refcoco out, or ask and read as the paper does"):
        run(request_to)
    small = replace(request_to, tasks=("refcoco",), methods=(), protocol="paper")
    assert run(small).missing == 0
