"""Where results go: nothing of the user's is overwritten unasked, and what cannot be written is said at once."""

import json
import os
import shutil
from pathlib import Path

import odd_pictures
import pytest
from PIL import Image

from command_line import cli, document, sentence
from feathervlm import PruningError
from feathervlm.inference import loading
from feathervlm.utils import files, outputs, picture_formats

ASKED = "what is the background ?"


@pytest.fixture
def own(tmp_path):
    """A photo of the user's, in a folder of its own."""
    path = tmp_path / "photos" / "own.png"
    path.parent.mkdir()
    path.write_bytes(odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG"))
    return path


@pytest.fixture
def no_work(monkeypatch):
    """Fail as soon as a model is looked at."""
    for name in ("check", "load", "load_model"):
        monkeypatch.setattr(loading, name, lambda *_, **__: pytest.fail("a model was looked at"))


SMALL = ("--max-new-tokens", 1, "--repeats", 1)


def run(own, overlay, *more):
    return cli("run", "--image", own, "--prompt", ASKED, "--overlay", overlay, *SMALL, *more)


def test_an_input_is_never_an_output(own, tmp_path, no_work, monkeypatch):
    before = own.read_bytes()
    (tmp_path / "link.png").symlink_to(own)
    os.link(own, tmp_path / "hard.png")
    monkeypatch.chdir(own.parent)
    around = own.parent / ".." / "photos" / "own.png"
    for overlay in (own, "own.png", "./own.png", around, tmp_path / "link.png", tmp_path / "hard.png"):
        assert "is also read by this command; give another name, or --force" in sentence(run(own, overlay))
        assert own.read_bytes() == before


def test_all_inputs_count(own, tmp_path, no_work):
    schedule, methods = tmp_path / "mine.json", tmp_path / "mine.py"
    from feathervlm.methods import get

    get("fastv:layer=2").schedule().save(schedule)
    methods.write_text("from feathervlm.methods import FastV\n")
    for out in (schedule, tmp_path / "schedule.json"):
        if out != schedule:
            out.symlink_to(schedule)
        assert "is also read by this command" in sentence(cli("bench", "--method", schedule, "--out", out))
    lines = tmp_path / "study" / "runs.json"
    lines.parent.mkdir()
    shutil.copy(own, lines.parent / "a.png")
    lines.write_text(json.dumps({"image": "a.png", "prompt": ASKED, "answer": "red"}))
    assert "is also read" in sentence(cli("study", "--data", lines, "--out", lines.parent))
    (lines.parent / "findings.json").write_text("{}")
    said = sentence(cli("study", "--beside", lines.parent, "--data", "embedded", "--out", lines.parent))
    assert "is also read by this command" in said or "holds no findings" in said
    scene = own.parent / "scene.png"
    shutil.copy(own, scene)
    assert "is also read" in sentence(cli("demo", "--image", scene, "--prompt", ASKED, "--out", own.parent))


def test_what_is_not_ours_stays_without_force_and_what_is_ours_is_replaced(own, tmp_path, stub):
    kept = tmp_path / "kept.png"
    kept.write_bytes(own.read_bytes())
    said = sentence(run(own, kept, "--json"))
    assert "exists and is not a result of feathervlm; give another name, or --force" in said
    assert kept.read_bytes() == own.read_bytes()
    document(run(own, kept, "--json", "--force"))
    assert kept.read_bytes() != own.read_bytes()
    document(run(own, kept, "--json"))
    assert "is also read" in sentence(cli("run", "--image", kept, "--prompt", ASKED, "--overlay", kept))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif", ".gif", ".jp2", ".pdf"])
def test_a_picture_of_ours_is_known_in_every_format_with_a_place_for_a_mark(suffix, tmp_path):
    path = tmp_path / f"kept{suffix}"
    picture_formats.check_suffix(path, "--overlay")
    files.write_whole(path, lambda draft: picture_formats.write(Image.new("RGB", (8, 8)), draft))
    assert outputs.is_ours(path)
    Image.new("RGB", (8, 8)).save(tmp_path / f"other{suffix}")
    assert not outputs.is_ours(tmp_path / f"other{suffix}")


@pytest.mark.parametrize(
    "suffix",
    [
        ".png",
        ".svg",
        *(pytest.param(one, marks=pytest.mark.full) for one in (".pdf", ".jpg", ".webp", ".tif", ".eps", ".PNG")),
    ],
)
def test_a_figure_of_ours_is_known_and_written_in_every_format_that_is_accepted(suffix, tmp_path):
    from feathervlm.utils import plotting

    path, again = tmp_path / f"plot{suffix}", tmp_path / f"again{suffix}"
    plotting.check_suffix(path, "--plot")
    with plotting.style():
        figure, _ = plotting.axes(1)
        for one in (path, again):
            files.write_whole(one, lambda draft: plotting.save(figure, draft))
    assert outputs.is_ours(path)
    assert path.read_bytes() == again.read_bytes() or suffix == ".eps"


def test_every_command_leaves_files_of_the_users(own, tmp_path, no_work):
    folder, text = tmp_path / "mine", "my own notes"
    folder.mkdir()
    lines = tmp_path / "mine.jsonl"
    lines.write_text(json.dumps({"image": str(own), "prompt": ASKED, "answer": "red"}))
    names = {
        "demo": (["--image", own, "--prompt", ASKED], ["scene.png", "overview.png", "results.json", "1-fastv.png"]),
        "diagnose": (["--images", own.parent], ["diagnosis.html", "diagnosis.json"]),
        "eval": (["--tasks", lines], ["results.json", "answers", "samples"]),
        "study": (["--data", lines], ["report.md", "findings.json", "runs.json", "figures", "1-damage.json"]),
    }
    for command, (options, written) in names.items():
        for name in written:
            (folder / name).write_text(text)
            said = sentence(cli(command, *options, "--out", folder))
            assert name in said
            assert "--force" in said or "give another directory" in said
            assert (folder / name).read_text() == text
            (folder / name).unlink()
    assert list(folder.iterdir()) == []


def test_pictures_of_the_users_in_the_folder_of_a_demo_stay(own, tmp_path, stub):
    out = tmp_path / "out"
    line = ["demo", "--image", own, "--prompt", ASKED, "--out", out, "--json", "--method"]
    document(cli(*line, "uniform:layer=3"))
    shutil.copy(own, out / "7-cat.png")
    document(cli(*line, "random"))
    assert sorted(path.name for path in out.glob("?-*.png")) == ["0-unpruned.png", "1-random.png", "7-cat.png"]


def test_two_outputs_are_two_files(tmp_path, no_work, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    pairs = {"x.png": tmp_path / "x.png", "there/x.svg": "link/x.svg", "y.png": "./there/../y.png", "z.png": "z.png"}
    for out, plot in pairs.items():
        for more in ((), ("--force",)):
            said = sentence(cli("bench", "--quick", "--config", "tiny", "--out", out, "--plot", plot, *more))
            assert "--out and --plot are both" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


LONG = "x" * 300
REFUSED = [
    ("run", "--overlay", "kept.txt", "does not end like a picture"),
    ("run", "--overlay", "kept", "does not end like a picture"),
    ("run", "--overlay", "kept.xbm", "cannot be written (cannot write mode RGB as XBM)"),
    ("run", "--overlay", "kept.h5", "cannot be written"),
    ("run", "--overlay", "nowhere/kept.png", "there is no directory nowhere; make it first"),
    ("run", "--overlay", f"{LONG}.png", "File name too long"),
    ("run", "--overlay", "photos", "does not end like a picture"),
    ("run", "--overlay", "dir.png", "is a directory; give a file name"),
    ("run", "--overlay", "photos/own.png/kept.png", "there is no directory"),
    ("run", "--overlay", "pipe.png", "is a pipe or a device"),
    ("bench", "--plot", "x.txt", "does not end like a figure"),
    ("bench", "--plot", "x", "does not end like a figure"),
    ("bench", "--plot", "x.pgf", "does not end like a figure"),
    ("bench", "--plot", "nowhere/x.png", "there is no directory nowhere"),
    ("bench", "--out", "photos", "is a directory"),
    ("bench", "--out", LONG, "File name too long"),
    ("bench", "--out", "/dev/null", "is a pipe or a device"),
    ("demo", "--out", "photos/own.png", "cannot be made (File exists)"),
    ("demo", "--out", "photos/own.png/out", "cannot be made (Not a directory)"),
    ("demo", "--out", LONG, "File name too long"),
    ("diagnose", "--out", "photos/own.png", "cannot be made (File exists)"),
    ("diagnose", "--out", f"deep/{LONG}", "File name too long"),
    ("eval", "--out", "photos/own.png", "cannot be made (File exists)"),
    ("study", "--out", "photos/own.png/a/b", "cannot be made (Not a directory)"),
]


@pytest.mark.parametrize(("command", "option", "value", "said"), REFUSED)
def test_what_cannot_be_written_is_said_before_any_work(
    command, option, value, said, own, tmp_path, no_work, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    os.mkdir("dir.png")
    more = ["--image", own, "--prompt", ASKED] if command == "run" else []
    before = sorted(tmp_path.rglob("*"))
    for force in ((), ("--force",)):
        assert said in sentence(cli(command, option, value, *more, *force))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_longest_name_is_written(own, tmp_path, stub):
    names = [tmp_path / ("x" * 251 + ".png"), tmp_path / ("y" * 255)]
    document(run(own, names[0], "--json"))
    files.write_json(names[1], {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["photos", *(name.name for name in names)])
    long = tmp_path / ("z" * 255)
    document(cli("demo", "--image", own, "--prompt", ASKED, "--out", long, "--json"))
    assert (long / "results.json").exists()


def test_a_refusal_leaves_no_folder(own, tmp_path):
    out = tmp_path / "made" / "out"
    lines = tmp_path / "mine.jsonl"
    lines.write_text(json.dumps({"image": str(own), "prompt": ASKED, "answer": "red"}))
    for command in (
        ["demo", "--model", "nowhere", "--out", out],
        ["demo", "--image", own, "--out", out],
        ["diagnose", "--model", "nowhere", "--images", own.parent, "--out", out],
        ["eval", "--tasks", "nope", "--out", out],
        ["eval", "--tasks", lines, "--method", "fastv:layer=99", "--out", out],
        ["eval", "--tasks", lines, "--model", "nowhere", "--out", out],
        ["study", "--data", lines, "--model", "nowhere", "--out", out],
        ["study", "--data", lines, "--report-only", "--out", out],
        ["study", "--data", lines, "--beside", "nowhere", "--out", out],
    ):
        sentence(cli(*command))
        assert not out.parent.exists(), command


def test_a_folder_whose_name_is_not_utf_8_is_diagnosed(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos-\xff\xfe"))
    folder.mkdir()
    picture = odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG")
    Path(os.fsdecode(os.fsencode(folder) + b"/cat-\xe9.png")).write_bytes(picture)
    found = document(
        cli("diagnose", "--images", folder, "--out", tmp_path / "out", "--method", "fastv:layer=2", "--json")
    )
    assert found["about"]["images"] == ["cat-?.png"]
    page = (tmp_path / "out/diagnosis.html").read_text(encoding="utf-8")
    assert "cat-?.png" in page


@pytest.mark.full
def test_names_that_are_not_utf_8_in_every_command(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9thode"))
    picture = odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG")
    odd.mkdir()
    (odd / "a.png").write_bytes(picture)
    (odd / "half.png").write_bytes(picture[:60])
    lines = Path(os.fsdecode(os.fsencode(odd) + b"/m\xff.jsonl"))
    lines.write_text(json.dumps({"image": "a.png", "prompt": ASKED, "answer": "red"}))
    assert "m?thode" in sentence(cli("run", "--image", odd / "half.png", "--prompt", ASKED))
    done = cli("eval", "--tasks", lines, "--method", "none", "--out", odd / "eval")
    assert done.exit_code == 0, done.output
    assert (odd / "eval/samples/m?.jsonl").is_dir()


def test_a_background_and_a_format_that_do_not_exist_are_refused_early(own, no_work, tmp_path):
    for command in (
        ["run", "--image", own, "--prompt", ASKED],
        ["demo", "--image", own, "--prompt", ASKED, "--out", tmp_path / "out"],
        ["diagnose", "--images", own.parent, "--out", tmp_path / "out"],
    ):
        assert "'ultraviolet' is not a colour" in sentence(cli(*command, "--background", "ultraviolet"))


def test_check_folder_without_a_place(tmp_path):
    with pytest.raises(PruningError, match="cannot be made"):
        outputs.check_folder(tmp_path / "a\0b", "--out")
    with pytest.raises(PruningError, match="cannot be written"):
        outputs.check_file(tmp_path / "a\0b.png", "--overlay")
