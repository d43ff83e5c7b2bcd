"""Several processes in one folder: each writes files of its own, all read everything, and whole chunks alone count."""

from dataclasses import dataclass

import pytest

from feathervlm import PruningError
from feathervlm.evaluation.store import Journal, stem

CHUNKS = [(0, 1), (2, 3), (4,)]


@dataclass(frozen=True)
class Answer:
    question: int
    text: str = "x"


def open_all(folder, world):
    return [Journal(folder, {"model": "m"}, Answer, part=part) for part in range(world)]


def test_what_one_process_writes_all_read(tmp_path):
    first, second = open_all(tmp_path, 2)
    first.append("run", [Answer(0), Answer(1)])
    second.append("run", [Answer(2), Answer(3)])
    for journal in (first, second):
        assert sorted(journal.read("run", CHUNKS)) == [0, 1, 2, 3]
        assert journal.read("ru", CHUNKS) == {}
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        f"{stem('run')}.jsonl", f"{stem('run')}.part1.jsonl",
    ]  # fmt: skip


def test_half_a_chunk_of_another_process_does_not_count_and_is_left_to_it(tmp_path):
    first, second = open_all(tmp_path, 2)
    second.append("run", [Answer(0), Answer(1), Answer(2)])
    path = next(tmp_path.glob("*.part1.jsonl"))
    before = path.read_bytes()
    assert sorted(first.read("run", CHUNKS)) == [0, 1]
    assert path.read_bytes() == before
    first.append("run", [Answer(2, "mine"), Answer(3, "mine")])
    assert first.read("run", CHUNKS)[2].text == "mine"
    assert sorted(second.read("run", CHUNKS)) == [0, 1, 2, 3]
    assert path.read_bytes() != before, "its own process drops it"


def test_halves_of_a_chunk_in_two_files_are_no_whole(tmp_path):
    first, second = open_all(tmp_path, 2)
    first.append("run", [Answer(0)])
    second.append("run", [Answer(1)])
    assert first.read("run", CHUNKS) == {}


def test_the_folder_of_something_else_is_refused(tmp_path):
    Journal(tmp_path, {"model": "m"}, Answer)
    with pytest.raises(PruningError, match=r"holds an evaluation of something else \(model\)"):
        Journal(tmp_path, {"model": "n"}, Answer, part=1, holds="an evaluation")
    assert [path.name for path in tmp_path.glob(".*")] == [], "no draft is left"
