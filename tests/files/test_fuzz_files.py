"""Damaged pictures and lines by the thousand: each is read or refused in one sentence, and none hangs.

The gate tries 300; `make test-full` 10,000 of each kind.
"""

import json
import signal

import odd_annotations
import odd_pictures
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import local_sets
from command_line import cli
from feathervlm import PruningError
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks import TASKS
from feathervlm.evaluation.tasks.base import Question, QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.utils import pictures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SECONDS = 60
"""After this long an input counts as a hang; one takes milliseconds."""
FULL = 10_000


def examples(count):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)


def both(gate, full=FULL):
    """A test with the number of examples of the gate, and one with that of `make test-full`."""
    return pytest.mark.parametrize("count", [gate, pytest.param(full, marks=pytest.mark.full)], ids=["gate", "full"])


@pytest.fixture(autouse=True)
def no_hang():
    def hang(*_):
        pytest.fail(f"an input took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


WHOLE = list({**dict(odd_pictures.same_pixels()), **dict(odd_pictures.same_grey())}.values())
WHOLE += [odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), kind) for kind in ("JPEG", "AVIF", "GIF")]
WHOLE += list(dict(odd_pictures.damaged()).values())


@st.composite
def mutated(draw, contents):
    """Bytes of a file with some changed, cut out, repeated or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        # Headers are at the beginning, where damage matters most.
        at = at % 64 if draw(st.booleans()) else at
        match draw(st.integers(0, 4)):
            case 0 if at < len(content):
                content[at] = draw(st.integers(0, 255))
            case 1:
                del content[at : at + draw(st.integers(1, 40))]
            case 2:
                content[at:at] = draw(st.binary(max_size=12))
            case 3:
                content[at:at] = content[at : at + draw(st.integers(1, 40))]
            case _ if at + 4 <= len(content):
                extreme = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"]))
                content[at : at + 4] = extreme
    return bytes(content)


def assert_names(error, name):
    assert str(name) in one_sentence(error)


def one_sentence(error):
    said = str(error)
    assert said.endswith(".")
    assert "\n" not in said
    said.encode()
    return said


@both(100)
def test_pictures(count, tmp_path):
    path = tmp_path / "a.png"

    @examples(count)
    @given(mutated(WHOLE))
    def check(content):
        signal.alarm(SECONDS)
        path.write_bytes(content)
        size = None
        try:
            size = pictures.measure(content, "a.png")
        except PruningError as error:
            one_sentence(error)
        try:
            opened = pictures.open_picture(path)
        except PruningError as error:
            assert_names(error, path)
            return
        assert opened.mode == "RGB"
        assert min(opened.size) > 0
        assert size is None or size == opened.size or content[:2] != b"\x89P"

    check()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["a.png", "pixels"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["id", "image", "prompt", "box", "box_format", "answers", "answer", "task", "x"])
GOOD = {"image": "a.png", "prompt": "where?", "box": [1, 2, 30, 20]}
LINES = st.dictionaries(KEYS, VALUES, max_size=6).map(lambda some: json.dumps(GOOD | some).encode())


@both(80)
def test_lines_of_questions(count, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    path = tmp_path / "mine.jsonl"

    @examples(count)
    @given(st.lists(LINES | LINES.flatmap(lambda line: mutated([line])) | st.binary(max_size=20), max_size=4))
    def check(lines):
        signal.alarm(SECONDS)
        path.write_bytes(b"\n".join(lines))
        try:
            questions = Jsonl(path).questions(None)
        except PruningError as error:
            assert_names(error, path)
            return
        assert questions
        for question in questions:
            assert (question.box is None) != (question.target is None)
            if question.box:
                left, top, right, bottom = question.box
                assert right - left >= 1
                assert bottom - top >= 1
                assert max(right - 40, bottom - 30, -left, -top) <= 0.01

    check()


@both(70)
def test_annotations(count, tmp_path):
    local_sets.make(tmp_path)
    texts = {name: (tmp_path / path).read_bytes() for name, path in odd_annotations.FILES.items()}

    @examples(count)
    @given(st.sampled_from(sorted(texts)), st.data())
    def check(name, data):
        signal.alarm(SECONDS)
        path = tmp_path / odd_annotations.FILES[name]
        if data.draw(st.booleans()):
            content = data.draw(mutated([texts[name]]))
        else:
            document, rows = odd_annotations.rows_of(name, texts[name].decode())
            row = rows[data.draw(st.integers(0, len(rows) - 1))]
            row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
            content = odd_annotations.write(name, document).encode()
        path.write_bytes(content)
        try:
            questions = TASKS[name](tmp_path).questions(None)
        except PruningError as error:
            one_sentence(error)
        else:
            assert all(isinstance(question.id, str) and question.prompt for question in questions)
            assert "None" not in {question.prompt for question in questions}
        finally:
            path.write_bytes(texts[name])

    check()


@both(50)
def test_stored_answers(count, tmp_path):
    questions = QuestionSet(Embedded(), [Question(str(n), "?", "", split=str(n // 2)) for n in range(6)])
    samples = [
        Sample(n, str(n), "", "red", 1.0, shape=(1, 2, 2), kept=("f0",), box=(1.0, 2.0, 3.0, 4.0)) for n in range(6)
    ]
    store = AnswerStore(tmp_path / "answers", {"model": "m"})
    for chunk in questions.chunks:
        store.append(questions, "unpruned", [samples[n] for n in chunk])
    (path,) = (tmp_path / "answers").glob("*.jsonl")
    whole, key = path.read_bytes(), (tmp_path / "answers/key.json").read_bytes()

    @examples(count)
    @given(mutated([whole]), st.none() | mutated([key]))
    def check(content, noted):
        signal.alarm(SECONDS)
        path.write_bytes(content)
        (tmp_path / "answers/key.json").write_bytes(key if noted is None else noted)
        try:
            again = AnswerStore(tmp_path / "answers", {"model": "m"})
        except PruningError as error:  # a key that is whole, and of something else
            assert_names(error, "holds a study of something else")
            return
        known = again.read(questions, "unpruned")
        assert all(len([n for n in chunk if n in known]) in (0, len(chunk)) for chunk in questions.chunks)
        for chunk in questions.chunks:
            if chunk[0] not in known:
                again.append(questions, "unpruned", [samples[n] for n in chunk])
        assert sorted(again.read(questions, "unpruned")) == list(range(6))
        assert [one.name for one in (tmp_path / "answers").iterdir() if one.name.startswith(".")] == []

    check()


@both(10, 1000)
def test_damaged_pictures_on_the_command_line(count, tmp_path, stub):
    (tmp_path / "in").mkdir()
    path, kept = tmp_path / "in/a.png", tmp_path / "kept.png"

    @examples(count)
    @given(mutated(WHOLE))
    def check(content):
        signal.alarm(SECONDS)
        path.write_bytes(content)
        done = cli("run", "--image", path, "--prompt", "what is the background ?", "--overlay", kept, "--json")
        assert done.exit_code in (0, 2), done.output
        assert "Traceback" not in done.stderr
        assert kept.exists() == (done.exit_code == 0)
        kept.unlink(missing_ok=True)
        assert sorted(one.name for one in tmp_path.rglob("*")) == ["a.png", "in"]

    check()
