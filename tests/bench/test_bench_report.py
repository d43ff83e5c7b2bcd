"""The page of the docs says what the results say, and nothing of its own."""

import json

import pytest

from feathervlm.bench import report
from feathervlm.bench.run_bench import BenchRequest, run


@pytest.fixture(scope="module")
def _measured():
    return {}


@pytest.fixture
def folder(tmp_path, _measured):
    if not _measured:
        methods = ("fastv:layer=1", "random:layer=1")
        wanted = {"config": "mini", "rounds": 1, "new_tokens": 2}
        _measured["line"] = run(BenchRequest(**wanted, methods=methods, tokens=(16, 64)))
        _measured["batch"] = run(BenchRequest(**wanted, methods=("feather",), batches=(1, 2)))
    for name, document in _measured.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "line.png").write_bytes(b"")
    return tmp_path


@pytest.mark.full
def test_the_page_shows_every_row_command_and_figure(folder):
    text = report.render(folder, folder, "where")
    for document in report.read(folder).values():
        assert document["provenance"]["command"] in text
        for row in document["rows"]:
            assert f"| {' | '.join(report.cells(row))} |" in text
        for one in document["verdicts"]:
            assert one["gain"] or one["text"] in text
    assert "![Measured against ideal](where/line.png)" in text
    assert "batch.png" not in text
    assert "| `fastv:layer=1` | 1 | 4 | " in text
    assert "All measurements ran on a CPU" in text
    assert "{{" not in text
    assert "{%" not in text


def test_the_page_follows_the_results(folder):
    before = report.render(folder, folder, "where")
    path = folder / "batch.json"
    document = json.loads(path.read_text())
    row = document["rows"][1]
    row["gap"] = 9.87
    document["settings"]["device"] = "a GPU"
    document["refused"] = [{"tokens": 1, "batch": 1, "layers": 1, "reason": "it is too large."}]
    path.write_text(json.dumps(document))
    after = report.render(folder, folder, "where")
    assert "+9.87: `feather`" in after
    assert "+9.87" not in before
    assert "ran on a CPU" not in after
    assert "- Not measured: it is too large." in after


def test_trends_are_those_of_one_line(plain, row):
    rows = [plain, row, row | {"tokens": 144}, row | {"tokens": 2304}, row | {"tokens": 144, "batch": 8}]
    (found,) = report.trends({"settings": {"model": None, "config": "tiny"}, "rows": rows}, "tokens")
    assert (found.low["tokens"], found.high["tokens"], found.verb) == (144, 2304, "stays")
    (found,) = report.trends({"settings": {"model": None, "config": "tiny"}, "rows": rows}, "batch")
    assert (found.low["batch"], found.high["batch"]) == (1, 8)
    assert report.trends({"settings": {"model": None, "config": "tiny"}, "rows": rows}, "layers") == []
