"""Answers on disk: nothing lost, nothing counted twice, whatever the moment of a kill."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Ledger, Record

CHUNKS = [(0, 1, 2), (3, 4), (5,)]
RECORDS = [
    Record(0, "a\nb", True),
    Record(1, "ü\u2028", False, 0.25, (1.0, 2.0, 3.0, 4.0), True, 12.5, 0.5, (1, 2, 2), ("f0", "10")),
    *(Record(number, "x", bool(number % 2)) for number in range(2, 6)),
]


def fill(folder: Path) -> Path:
    ledger = Ledger(folder, {"model": "m"})
    for chunk in CHUNKS:
        ledger.append("fastv:layer=2", [RECORDS[number] for number in chunk])
    (path,) = folder.glob("*.jsonl")
    return path


def test_what_was_written_is_read_again(tmp_path):
    fill(tmp_path)
    ledger = Ledger(tmp_path, {"model": "m"})
    assert ledger.read("fastv:layer=2", CHUNKS) == dict(enumerate(RECORDS))
    assert ledger.read("fastv:layer=3", CHUNKS) == {}


@given(share=st.floats(0, 1))
def test_after_a_cut_at_any_byte_only_whole_chunks_count_and_the_rest_can_be_appended(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("answers")
    path = fill(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    ledger = Ledger(folder, {"model": "m"})
    known = ledger.read("fastv:layer=2", CHUNKS)
    for chunk in CHUNKS:
        assert {number in known for number in chunk} in ({True}, {False})
    for chunk in CHUNKS:
        if chunk[0] not in known:
            ledger.append("fastv:layer=2", [RECORDS[number] for number in chunk])
    assert ledger.read("fastv:layer=2", CHUNKS) == dict(enumerate(RECORDS))
    assert len(path.read_text().split("\n")) == len(RECORDS) + 1, "every answer once"


def test_two_specs_with_the_same_words_have_files_of_their_own(tmp_path):
    ledger = Ledger(tmp_path, {})
    ledger.append("a/b", RECORDS[:1])
    ledger.append("a_b", RECORDS[1:2])
    assert list(ledger.read("a/b", [(0,)])) == [0]
    assert list(ledger.read("a_b", [(1,)])) == [1]


def test_a_folder_of_another_study_is_refused_with_what_differs(tmp_path):
    Ledger(tmp_path / "answers", {"model": "m", "data": "d"})
    with pytest.raises(PruningError, match=r"something else \(data\); give another --out"):
        Ledger(tmp_path / "answers", {"model": "m", "data": "e"})
