"""`feathervlm serve --engine vllm` over HTTP: answers, refusals, counts, and clients that hang up."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from feathervlm.embedded.tasks import sample
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt

FEATHER = "before-llm:method=(feather:layers=4+9,fixed=true)"
METHODS = ["divprune:keep=0.25", "uniform:layer=0", FEATHER, "fastervlm:keep=0.25", "none"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "feathervlm", "serve", "--engine", "vllm", "--method", METHODS[0], "--per-request",
        "--port", str(port), "--dtype", "float32", "--", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs",
        "8", "--limit-mm-per-prompt", '{"image": 2}',
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                get(port, "/health", timeout=1)
                break
            except OSError:
                threading.Event().wait(1)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def get(port, path, timeout=30):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as response:
        return response.read().decode()


def url(picture, kind="PNG"):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()


def chat(text, *urls, method=None, **more):
    content = [{"type": "image_url", "image_url": {"url": one}} for one in urls] + [{"type": "text", "text": text}]
    body = {"model": "embedded", "messages": [{"role": "user", "content": content}], "max_tokens": 5, "temperature": 0}
    body |= more
    return body if method is None else {**body, "mm_processor_kwargs": {"feathervlm": method}}


def post(port, body):
    """Return the status and the document of a response."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_are_those_of_the_pruned_transformers_model(server):
    pairs = [sample("locate", 7, number) for number in range(4)]
    answerer = Answerer(load(ModelSpec()))
    asked = [(scene, question, method) for scene, question in pairs for method in METHODS]
    bodies = [
        chat(question.text, url(scene.image), method=None if method == METHODS[0] else method)
        for scene, question, method in asked
    ]
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda body: post(server, body), bodies))
    assert [status for status, _ in replies] == [200] * len(asked)
    for (scene, question, method), (_, reply) in zip(asked, replies, strict=True):
        prompt = Prompt(question.text, (scene.image,))
        expected = answerer.ask([prompt], None if method == "none" else method)[0]
        assert reply["choices"][0]["message"]["content"].strip() == expected.text
        kept = 256 if expected.report is None else len(expected.report.stages[-1].kept[0])
        assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens - 256 + kept


def test_metrics_count_visual_and_kept_tokens(server):
    scene, question = sample("locate", 7, 5)

    def counts():
        lines = [line.split() for line in get(server, "/metrics").splitlines() if line.startswith("feathervlm:")]
        return {name: float(value) for name, value in lines if 'method="divprune:keep=0.25"' in name}

    post(server, chat(question.text, url(scene.image)))
    before = counts()
    post(server, chat(question.text, url(scene.image)))  # from the caches
    after = counts()
    grown = {name.split("{")[0]: after[name] - before[name] for name in after if "_created" not in name}
    assert grown == {"feathervlm:visual_tokens_total": 256, "feathervlm:kept_visual_tokens_total": 64}


PICTURE = url(Image.new("RGB", (64, 64), "red"))


@pytest.mark.parametrize(
    "body",
    [
        chat("where ?", PICTURE, method="feather:layers=4+9"),
        chat("where ?", PICTURE, method="nonsense"),
        chat("where ?", PICTURE, method="before-llm:method=(feather:layers=4+9)"),
        chat("where ?", PICTURE, method="divprune:keep=0"),
        chat("where ?", PICTURE, PICTURE, method=FEATHER),
        chat("where ?", PICTURE, PICTURE, PICTURE),
        chat("where ?", "data:image/png;base64,@@@"),
        chat("where ?", "data:image/png;base64,aGVsbG8="),
        chat("where ?", url(Image.new("RGB", (64, 64), "red"), "JPEG")[:-400]),
        chat("where ? " * 600, PICTURE),
    ],
)
def test_a_bad_request_is_the_clients_error_and_the_server_answers_afterwards(server, body):
    status, reply = post(server, body)
    assert status == 400, reply
    assert reply["error"]["message"]
    scene, question = sample("locate", 7, 0)
    assert post(server, chat(question.text, url(scene.image)))[0] == 200


def test_clients_that_hang_up_disturb_nobody(server):
    scene, question = sample("locate", 7, 1)
    body = json.dumps(chat(question.text, url(scene.image), max_tokens=200, min_tokens=200, stream=True)).encode()
    lines = "POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    for part in (len(body) // 2, len(body)):  # in the middle of the request, and of the response
        with socket.create_connection(("127.0.0.1", server)) as connection:
            connection.sendall(head.encode() + body[:part])
            if part == len(body):
                connection.recv(200)
    alone = post(server, chat(question.text, url(scene.image)))
    assert alone[0] == 200
    assert post(server, chat(question.text, url(scene.image)))[1]["choices"] == alone[1]["choices"]
