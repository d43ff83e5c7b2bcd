"""`feathervlm demo`: pictures, numbers and a table from the embedded model, or from whatever the user gives."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from feathervlm.cli.main import app
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.evaluation.demo import ANYWHERE, METHODS


def demo(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "demo"
    return out, demo("--n", 2, "--out", out)


def test_it_writes_a_picture_for_each_method(shown):
    out, result = shown
    assert result.exit_code == 0, result.output
    names = ["scene.png", "0-unpruned.png", "1-fastv.png", "2-feather.png"]
    sizes = [Image.open(out / name).size for name in names]
    assert sizes[0] == (128, 128)
    assert sizes[1][0] < sizes[2][0] < sizes[3][0]  # the scene; and one stage; and two stages
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "overview.png", "results.json"])
    assert all(str(out / name) in result.output.replace("\n", "") for name in names)


def test_it_tells_answers_tokens_and_the_benchmark(shown):
    out, result = shown
    document = json.loads((out / "results.json").read_text())
    assert {reply["method"] for reply in document["replies"]} == {"unpruned", *METHODS}
    assert len(document["replies"]) == 9
    assert [one["method"] for one in document["benchmarks"]] == ["unpruned", *METHODS]
    located = [reply for reply in document["replies"] if reply["prompt"].startswith("where")]
    assert all(0 <= reply["iou"] <= 1 and reply["correct"] == (reply["iou"] >= 0.5) for reply in located)
    assert all((reply["flops_ratio"] < 1) == (reply["method"] != "unpruned") for reply in document["replies"])
    assert [len(reply["kept"]) for reply in located] == [0, 1, 2]
    for text in ("localization", "existence", "Look at the pictures"):
        assert text in result.output


def test_an_own_picture_and_question(tmp_path):
    Image.new("RGB", (200, 100), "red").save(tmp_path / "mine.png")
    result = demo(
        "--image", tmp_path / "mine.png", "--prompt", "Where is the red thing?", "--out", tmp_path / "out",
        "--method", "uniform:layer=3", "--json",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert [reply["prompt"] for reply in document["replies"]] == ["Where is the red thing?"] * 2
    assert document["replies"][0]["correct"] is None
    assert [one["method"] for one in document["benchmarks"]] == []


@pytest.mark.full
def test_another_model(tmp_path):
    result = demo("--model", WEIGHTS, "--out", tmp_path / "out", "--json")
    document = json.loads(result.stdout)
    assert document["benchmarks"] == []
    assert {reply["method"] for reply in document["replies"]} == {"unpruned", *ANYWHERE}
    assert all(reply["correct"] is None for reply in document["replies"])


@pytest.mark.parametrize("size", [(2000, 2), (2, 2000), (37, 91)])
def test_a_picture_of_any_shape(size, tmp_path):
    Image.new("RGB", size, "green").save(tmp_path / "mine.png")
    result = demo("--image", tmp_path / "mine.png", "--prompt", "where is the sign ?", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


@pytest.mark.full
def test_pictures_of_an_earlier_run_go(tmp_path):
    for method in ("uniform:layer=3", "random"):
        demo("--n", 0, "--out", tmp_path, "--method", method, "--method", method)
    assert sorted(path.name for path in tmp_path.glob("?-*.png")) == ["0-unpruned.png", "1-random.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "mine.png"], "needs a question"),
        (["--image", "none.png", "--prompt", "where is the sign ?"], "There is no image file none.png"),
        (["--prompt", "describe the weather"], "does not know 'describe', 'weather'; ask something like"),
        (["--method", "magic"], "magic"),
        (["--model", "nowhere"], "There is no model directory"),
        (["--out", __file__], "cannot be made (File exists)"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, tmp_path):
    result = demo("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("out/*"))
