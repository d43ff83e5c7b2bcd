"""Answers on disk: nothing lost, nothing counted twice, whatever the moment of a kill and however many processes."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.errors import PruningError
from feathervlm.evaluation import store as stores
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore, run_name
from feathervlm.evaluation.tasks.base import Question, QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded

METHOD = "fastv:layer=2"


def asked(*counts):
    """Questions in chunks of these sizes."""
    questions = [
        Question(f"{part}-{n}", "?", "", split=str(part)) for part, size in enumerate(counts) for n in range(size)
    ]
    return QuestionSet(Embedded(), questions)


QUESTIONS = asked(3, 2, 1)
CHUNKS = [(0, 1, 2), (3, 4), (5,)]
SAMPLES = [
    Sample(0, "a", "", "a\nb", 1.0),
    Sample(
        1, "b", "", "ü\u2028", 0.0, True, 0.25, (1.0, 2.0, 3.0, 4.0), True, 12.5, 0.5, (1, 2, 2), ("f0", "10"),
        (0.0, 0.0, 8.0, 8.0), (0.125, 0.25, 0.375, 0.5),
    ),
    *(Sample(number, "x", "", "x", number % 2) for number in range(2, 6)),
]  # fmt: skip


def fill(folder: Path) -> Path:
    store = AnswerStore(folder, {"model": "m"})
    for chunk in CHUNKS:
        store.append(QUESTIONS, METHOD, [SAMPLES[number] for number in chunk])
    (path,) = folder.glob("*.jsonl")
    return path


def test_the_chunks_are_by_split():
    assert QUESTIONS.chunks == CHUNKS
    assert [len(chunk) for chunk in asked(81).chunks] == [40, 40, 1]


def test_what_was_written_is_read_again(tmp_path):
    fill(tmp_path)
    store = AnswerStore(tmp_path, {"model": "m"})
    assert store.read(QUESTIONS, METHOD) == dict(enumerate(SAMPLES))
    assert store.read(QUESTIONS, "fastv:layer=3") == {}
    assert store.read(asked(3, 2, 2), METHOD) == {}, "other questions"


@pytest.mark.filterwarnings("ignore:feathervlm drops line")
@given(share=st.floats(0, 1))
def test_after_a_cut_at_any_byte_only_whole_chunks_count_and_the_rest_can_be_appended(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("answers")
    path = fill(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    store = AnswerStore(folder, {"model": "m"})
    known = store.read(QUESTIONS, METHOD)
    for chunk in CHUNKS:
        assert {number in known for number in chunk} in ({True}, {False})
    for chunk in CHUNKS:
        if chunk[0] not in known:
            store.append(QUESTIONS, METHOD, [SAMPLES[number] for number in chunk])
    assert store.read(QUESTIONS, METHOD) == dict(enumerate(SAMPLES))
    assert len(path.read_text().split("\n")) == len(SAMPLES) + 1, "every answer once"


def test_a_changed_method_of_the_same_name_does_not_meet_old_answers(tmp_path, monkeypatch):
    fill(tmp_path)
    store = AnswerStore(tmp_path, {"model": "m"})
    assert sorted(store.read(QUESTIONS, METHOD)) == list(range(6))
    name = run_name(QUESTIONS, METHOD)
    other = stores.get("fastv:layer=3")
    monkeypatch.setattr(stores, "get", lambda spec: other)
    assert store.read(QUESTIONS, METHOD) == {}
    assert run_name(QUESTIONS, METHOD) != name


def test_two_methods_with_the_same_words_have_files_of_their_own(tmp_path):
    store = AnswerStore(tmp_path, {})
    one, other = "feather:keep=0.3,layers=8+16", "feather:keep=0.3,layers=8+9"
    store.append(asked(1), one, SAMPLES[:1])
    store.append(asked(1), other, [replace(SAMPLES[0], answer="other")])
    assert [store.read(asked(1), method)[0].answer for method in (one, other)] == ["a\nb", "other"]


def test_a_folder_of_something_else_is_refused_with_what_differs(tmp_path):
    store = AnswerStore(tmp_path / "answers", {"model": "m", "data": "d"})
    assert not (tmp_path / "answers").exists(), "made with the first answer"
    store.append(QUESTIONS, METHOD, SAMPLES[:3])
    with pytest.raises(PruningError, match=r"holds a study of something else \(data\); give another --out"):
        AnswerStore(tmp_path / "answers", {"model": "m", "data": "e"})
    with pytest.raises(PruningError, match=r"holds an evaluation of something else \(model\)"):
        AnswerStore(tmp_path / "answers", {"model": "n", "data": "d"}, part=1, holds="an evaluation")
    assert [path.name for path in (tmp_path / "answers").glob(".*")] == [], "no draft stays"


def open_all(folder, world):
    return [AnswerStore(folder, {"model": "m"}, part=part) for part in range(world)]


def test_what_one_process_writes_all_read(tmp_path):
    questions = asked(2, 2, 1)
    first, second = open_all(tmp_path, 2)
    first.append(questions, METHOD, SAMPLES[:2])
    second.append(questions, METHOD, SAMPLES[2:4])
    for store in (first, second):
        assert sorted(store.read(questions, METHOD)) == [0, 1, 2, 3]
        assert store.read(questions, "fastv") == {}
    names = sorted(path.name.removesuffix(".jsonl") for path in tmp_path.glob("*.jsonl"))
    assert names[1] == f"{names[0]}.part1"


def test_half_a_chunk_of_another_process_does_not_count_and_is_left_to_it(tmp_path):
    questions = asked(2, 2, 1)
    first, second = open_all(tmp_path, 2)
    second.append(questions, METHOD, SAMPLES[:3])
    path = next(tmp_path.glob("*.part1.jsonl"))
    before = path.read_bytes()
    assert sorted(first.read(questions, METHOD)) == [0, 1]
    assert path.read_bytes() == before
    first.append(questions, METHOD, [replace(sample, answer="own") for sample in SAMPLES[2:4]])
    assert first.read(questions, METHOD)[2].answer == "own"
    assert sorted(second.read(questions, METHOD)) == [0, 1, 2, 3]
    assert path.read_bytes() != before, "its own process drops it"


def test_halves_of_a_chunk_in_two_files_are_not_whole(tmp_path):
    first, second = open_all(tmp_path, 2)
    first.append(asked(2), METHOD, SAMPLES[:1])
    second.append(asked(2), METHOD, SAMPLES[1:2])
    assert first.read(asked(2), METHOD) == {}
