"""Folders of answers as people have them: what is whole is kept, what is not is said and asked again."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import odd_folders
import odd_pictures
import pytest
import worker_processes
from PIL import Image

import local_sets
from command_line import cli, document, sentence
from feathervlm import PruningError
from feathervlm.evaluation import runner
from feathervlm.evaluation.run import EvalRequest, run
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks.base import Question, QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.inference import loading
from feathervlm.inference.model_spec import ModelSpec

METHOD, KEY = "fastv:layer=2", {"model": "m"}
QUESTIONS = QuestionSet(
    Embedded(), [Question(f"{part}-{n}", "?", "", split=str(part)) for part in range(3) for n in range(3)]
)
ASKED = "what is the background ?"


def samples(chunk):
    return [Sample(number, QUESTIONS.questions[number].id, "", f"answer {number}", 1.0) for number in chunk]


@pytest.fixture
def stored(tmp_path):
    """A folder with all answers, and the file that holds them."""
    store = AnswerStore(tmp_path / "out/answers", KEY, {"time": "then"})
    for chunk in QUESTIONS.chunks:
        store.append(QUESTIONS, METHOD, samples(chunk))
    (path,) = (tmp_path / "out/answers").glob("*.jsonl")
    return path


@pytest.mark.parametrize("kind", odd_folders.LINES)
@pytest.mark.parametrize("number", [0, 4, 8])
def test_a_line_that_is_no_answer_costs_its_chunk_and_no_other(kind, number, stored):
    odd_folders.break_line(stored, kind, number)
    store = AnswerStore(stored.parent, KEY)
    with pytest.warns(UserWarning, match=rf"feathervlm drops line {number + 1} of {stored}, which is not an answer"):
        known = store.read(QUESTIONS, METHOD)
    lost = {number // 3} | ({(number + 1) // 3} if kind == "two in one" and number < 8 else set())
    assert sorted(known) == [n for n in range(9) if n // 3 not in lost]
    for part in lost:
        store.append(QUESTIONS, METHOD, samples(QUESTIONS.chunks[part]))
    assert store.read(QUESTIONS, METHOD) == dict(enumerate(samples(range(9))))


@pytest.mark.parametrize("kind", odd_folders.NOTES)
@pytest.mark.parametrize("name", ["key.json", "begun.json", "sets.json"])
def test_a_file_of_notes_that_is_damaged_is_said_and_loses_no_answer(name, kind, stored):
    (stored.parent / name).write_bytes(odd_folders.NOTES[kind])
    with warnings.catch_warnings(record=True) as caught:
        store = AnswerStore(stored.parent, KEY)
        assert store.begun == ({} if name == "begun.json" else {"time": "then"})
        store.note([QUESTIONS])
    said = {str(one.message) for one in caught}
    assert len(said) == 1
    assert f"feathervlm: {stored.parent / name} " in said.pop()
    assert len(store.read(QUESTIONS, METHOD)) == 9
    if name == "key.json":
        assert json.loads((stored.parent / name).read_text()) == KEY


def test_answers_of_another_model_are_not_taken_where_the_key_is_lost(stored):
    (stored.parent / "key.json").write_bytes(b"")
    with pytest.warns(UserWarning, match="key.json"):
        assert AnswerStore(stored.parent, {"model": "n"}).read(QUESTIONS, METHOD) == {}


def test_opening_a_folder_makes_nothing(tmp_path):
    store = AnswerStore(tmp_path / "out/answers", KEY)
    assert store.read(QUESTIONS, METHOD) == {}
    assert list(tmp_path.iterdir()) == []


# What an answer depends on.


@pytest.fixture
def small(tmp_path):
    """One question of a file about one picture, asked under one method."""
    path, picture = tmp_path / "mine.jsonl", tmp_path / "a.png"
    picture.write_bytes(odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG"))
    path.write_text(json.dumps({"image": "a.png", "prompt": ASKED, "answer": "red"}))
    return EvalRequest(ModelSpec(), (METHOD,), (str(path),), tmp_path, tmp_path / "out")


@cache
def checked(spec):
    return loading.check(spec)


def asked(monkeypatch, request):
    """The chunks that a run answers, without a model."""
    seen = []
    monkeypatch.setattr("feathervlm.evaluation.run.check", lambda spec, *_: checked(spec))

    def answer(spec, sets, work, store, **_):
        seen.extend((piece.part, piece.methods) for piece in work)
        for piece in work:
            for method in piece.methods:
                asked = [(n, sets[piece.part].questions[n]) for n in piece.chunk]
                found = [Sample(n, question.id, question.split, "red", 1.0) for n, question in asked]
                store.append(sets[piece.part], method, found)

    monkeypatch.setattr(runner, "run", answer)
    run(request)
    return [method for _, methods in seen for method in methods]


def swap_picture(request):
    path = request.data / "a.png"
    before = path.stat()
    path.write_bytes(odd_pictures.save(Image.fromarray(255 - odd_pictures.PIXELS), "PNG"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    return request


def rewrite(**changes):
    def change(request):
        path = Path(request.tasks[0])
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return request

    return change


CHANGES = {
    "picture": (swap_picture, "the pictures of mine.jsonl have changed since the previous run"),
    "prompt": (rewrite(prompt="what colour is the background ?"), "the questions of mine.jsonl have changed"),
    "answer": (rewrite(answer="blue"), "the questions of mine.jsonl have changed"),
    "background": (lambda request: replace(request, background="black"), "the pictures of mine.jsonl have changed"),
    "model": (lambda request: replace(request, spec=ModelSpec(batch=7)), r"of something else \(model\)"),
    "dtype": (lambda request: replace(request, spec=ModelSpec(dtype="bfloat16")), r"of something else \(model\)"),
    "attention": (lambda request: replace(request, spec=ModelSpec(attention="eager")), r"something else \(model\)"),
    "length": (lambda request: replace(request, spec=ModelSpec(max_new_tokens=9)), r"else \(max_new_tokens\)"),
    "protocol": (lambda request: replace(request, protocol="paper"), r"of something else \(protocol\)"),
    "method": (lambda request: replace(request, methods=(f"{METHOD},keep=0.2",)), None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_an_answer_depends_on_is_asked_anew_or_refused_and_said(what, small, monkeypatch):
    change, said = CHANGES[what]
    assert asked(monkeypatch, small) == ["unpruned", METHOD]
    assert asked(monkeypatch, small) == [], "nothing has changed"
    other = change(small)
    if said is None:
        assert asked(monkeypatch, other) == list(other.methods)
    elif "else" in said:
        with pytest.raises(PruningError, match=said):
            run(other)
    else:
        with pytest.warns(UserWarning, match=said):
            assert asked(monkeypatch, other) == ["unpruned", METHOD]
        assert asked(monkeypatch, other) == []


def test_a_picture_of_a_benchmark_that_is_replaced_is_asked_about_again(tmp_path, monkeypatch):
    data = local_sets.make(tmp_path / "data")
    request = EvalRequest(ModelSpec(), (), ("pope", "gqa"), data, tmp_path / "out")
    assert len(asked(monkeypatch, request)) == 4
    picture = data / "coco/val2014/COCO_val2014_000000000009.jpg"
    Image.new("RGB", (64, 64), "red").save(picture)
    with pytest.warns(UserWarning, match="the pictures of pope have changed"):
        assert len(asked(monkeypatch, request)) == 3, "those of gqa stay"


def test_a_study_refuses_pictures_that_were_replaced(tmp_path, small):
    from feathervlm.study import StudyQuestions, StudyRequest
    from feathervlm.study import run as run_study

    questions = StudyQuestions.of(small.tasks)
    hashes = {one.name: one.fingerprints for one in questions.sets}
    key = {"model": loading.describe(checked(ModelSpec())), "chunk": 40} | {
        kind: {name: own[kind] for name, own in hashes.items()} for kind in ("questions", "pictures")
    }
    store = AnswerStore(tmp_path / "study/answers", key)
    store.append(questions.sets[0], "unpruned", [Sample(0, "1", "other", "red", 1.0)])
    swap_picture(small)
    with pytest.raises(PruningError, match=r"holds a study of something else \(pictures\); give another --out"):
        run_study(StudyRequest(ModelSpec(), StudyQuestions.of(small.tasks), tmp_path / "study"))


def test_a_picture_that_changes_while_a_command_runs_is_refused(small):
    task = Jsonl(Path(small.tasks[0]))
    (question,) = task.questions(None)
    swap_picture(small)
    with pytest.raises(PruningError, match=r"a\.png has changed since this command began; run the same command again"):
        task.open(question)


def test_the_command_line_says_what_it_asks_anew(small, tmp_path, monkeypatch):
    asked(monkeypatch, replace(small, methods=()))
    command = ["eval", "--tasks", small.tasks[0], "--method", "none", "--out", tmp_path / "out", "--json"]
    assert "have changed" not in cli(*command).stderr
    swap_picture(small)
    found = cli(*command)
    assert found.exit_code == 0
    assert "warning: feathervlm: the pictures of mine.jsonl have changed since the previous run in" in found.stderr
    assert len(list((tmp_path / "out/answers").glob("*.jsonl"))) == 2


# Disks that are full.


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB; only where the machine lets this user mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


def test_a_full_disk_loses_no_answer_and_the_same_run_goes_on(disk):
    store = AnswerStore(disk / "out/answers", KEY)
    store.append(QUESTIONS, METHOD, samples(QUESTIONS.chunks[0]))
    (path,) = (disk / "out/answers").glob("*.jsonl")
    before = path.read_bytes()
    fill(disk)
    many = [replace(sample, answer="x" * 9000) for sample in samples(QUESTIONS.chunks[1])]
    for _ in range(2):
        with pytest.raises(PruningError, match=r"No space left on device\); free some space and run the same command"):
            store.append(QUESTIONS, METHOD, many)
        assert path.read_bytes() == before, "nothing is half-written"
    with pytest.raises(PruningError, match="free some space"):
        AnswerStore(disk / "more/answers", KEY).append(QUESTIONS, METHOD, many)
    (disk / "filler").unlink()
    again = AnswerStore(disk / "out/answers", KEY)
    assert sorted(again.read(QUESTIONS, METHOD)) == [0, 1, 2]
    again.append(QUESTIONS, METHOD, many)
    assert sorted(again.read(QUESTIONS, METHOD)) == [0, 1, 2, 3, 4, 5]


SMALL = ["--max-new-tokens", 1, "--repeats", 1]
WRITING = {
    "run": lambda picture, lines, disk: ["--image", picture, "--prompt", ASKED, "--overlay", disk / "kept.png", *SMALL],
    "demo": lambda picture, lines, disk: ["--image", picture, "--prompt", ASKED, "--out", disk / "out"],
    "diagnose": lambda picture, lines, disk: ["--images", picture.parent, "--out", disk / "out"],
    "eval": lambda picture, lines, disk: ["--tasks", lines, "--out", disk / "out", "--method", "none"],
    "study": lambda picture, lines, disk: ["--data", lines, "--out", disk / "out", "--quick", "--processes", 1],
    "bench": lambda picture, lines, disk: ["--quick", "--config", "tiny", "--tokens", 16, "--out", disk / "out.json"],
}


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(disk, small, stub):
    line = ["run", *WRITING["run"](small.data / "a.png", None, disk), "--json"]
    fill(disk)
    assert "free some space and run the same command again" in sentence(cli(*line))
    assert [path.name for path in disk.iterdir()] == ["filler"]
    (disk / "filler").unlink()
    document(cli(*line))


@pytest.mark.full
@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_in_every_command_is_one_sentence_and_nothing_half_written(command, disk, small, tmp_path):
    (tmp_path / "in").mkdir()
    picture = tmp_path / "in/a.png"
    picture.write_bytes((small.data / "a.png").read_bytes())
    line = [command, *WRITING[command](picture, small.tasks[0], disk)]
    fill(disk)
    said = sentence(cli(*line))
    assert "No space left on device" in said
    assert "free some space and run the same command again" in said
    files = [path for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
    assert [path for path in files if path.stat().st_size == 0 or "feathervlm." in path.name] == []
    if command in ("run", "eval"):
        (disk / "filler").unlink()
        document(cli(*line, "--json"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_an_output_stream_that_is_full_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "feathervlm", "methods", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: The output cannot be written (No space left on device)")
    assert "Traceback" not in done.stderr


# Processes.


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_worker_processes_end_with_their_parent(how):
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    parent = context.Process(target=worker_processes.middle, args=(theirs,))
    parent.start()
    child = mine.recv()
    os.kill(parent.pid, how)
    parent.join()
    assert gone(child), "the worker has ended"


def gone(pid, seconds=30):
    """Whether a process ends; it is no child of this one, so it cannot be waited for."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if status == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.full
def test_a_worker_that_dies_is_one_sentence_and_not_a_hang(tmp_path, small, monkeypatch):
    path = tmp_path / "die.py"
    path.write_text(
        "import os, multiprocessing\n"
        "from dataclasses import dataclass\n"
        "from feathervlm.methods import FastV\n"
        "@dataclass(frozen=True)\n"
        "class Dies(FastV):\n"
        "    name = 'dies'\n"
        "    def schedule(self):\n"
        "        if multiprocessing.parent_process() is not None:\n"
        "            os._exit(9)\n"
        "        return super().schedule()\n"
    )
    from feathervlm.methods.base import REGISTRY, load

    monkeypatch.setenv("FEATHERVLM_LOAD", "")
    load(path)
    try:
        task = Jsonl(Path(small.tasks[0]))
        sets = [QuestionSet(task, task.questions(None))]
        store = AnswerStore(tmp_path / "out/answers", KEY)
        work = runner.open_work(sets, ["dies"], store) * 2
        with pytest.raises(PruningError, match="A worker process has died"):
            runner.run(ModelSpec(), sets, work, store, processes=2)
    finally:
        del REGISTRY["dies"]
