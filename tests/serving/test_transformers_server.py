"""`transformers serve` with the embedded model pruned, asked in this process."""

import asyncio
import base64
import io
import json

import pytest

pytest.importorskip("fastapi", reason="an extra that is not installed")
pytest.importorskip("openai", reason="an extra that is not installed")
httpx = pytest.importorskip("httpx", reason="an extra that is not installed")

from PIL import Image  # noqa: E402

from feathervlm.embedded.tasks import sample  # noqa: E402
from feathervlm.inference.answerer import Answerer  # noqa: E402
from feathervlm.inference.loading import load  # noqa: E402
from feathervlm.inference.model_spec import ModelSpec  # noqa: E402
from feathervlm.inference.prompts import Prompt  # noqa: E402
from feathervlm.serving.transformers_server import PruningServe, ServerSettings  # noqa: E402

METHOD = "feather:layers=4+9"


class InProcess(PruningServe):
    """A server that listens on no port."""

    def start_server(self):
        self.wrap()


@pytest.fixture(scope="module")
def server():
    made = InProcess(ServerSettings(ModelSpec(), METHOD, "127.0.0.1", 8000, True), "cpu", "float32")
    yield made
    made._generation_state.shutdown()
    made._model_manager.shutdown()


def url(picture, kind="PNG"):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()


def chat(text, *urls, method=None, **more):
    content = [{"type": "image_url", "image_url": {"url": one}} for one in urls] + [{"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 5, "temperature": 0, **more}
    return body if method is None else {**body, "mm_processor_kwargs": {"feathervlm": method}}


def ask(server, *bodies):
    """Return the responses to requests that are sent together."""

    async def run():
        transport = httpx.ASGITransport(server.server.config.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))

    return asyncio.run(run())


def test_answers_are_those_of_the_pruned_model(server):
    pairs = [sample("locate", 7, number) for number in range(3)]
    answerer = Answerer(load(ModelSpec()))
    methods = [METHOD, "divprune:keep=0.25", "none"]
    bodies = [
        chat(question.text, url(scene.image), model="embedded", method=None if method == METHOD else method)
        for scene, question in pairs
        for method in methods
    ]
    responses = ask(server, *bodies)
    expected = [
        answerer.ask([Prompt(question.text, (scene.image,))], None if method == "none" else method)[0]
        for scene, question in pairs
        for method in methods
    ]
    texts = [response.json()["choices"][0]["message"]["content"].strip() for response in responses]
    assert texts == [answer.text for answer in expected]
    for response, answer in zip(responses, expected, strict=True):
        kept = response.headers.get("x-feathervlm-kept-tokens")
        assert kept == (None if answer.report is None else str(len(answer.report.stages[-1].kept[0])))


def test_a_prompt_without_a_picture_runs_unpruned(server):
    (response,) = ask(server, chat("how many circles are there ?"))
    assert response.status_code == 200
    assert "x-feathervlm-kept-tokens" not in response.headers


def test_a_stream_is_pruned_and_counted(server):
    scene, question = sample("locate", 7, 4)
    before = server.counts.text()
    (whole,), (streamed,) = (ask(server, chat(question.text, url(scene.image), stream=part)) for part in (False, True))
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.strip() == whole.json()["choices"][0]["message"]["content"].strip()
    assert server.counts.text() != before


TRUNCATED = url(Image.new("RGB", (64, 64), "red"), "JPEG")[:-400]


@pytest.mark.parametrize(
    "body",
    [
        chat("where ?", "data:image/png;base64,@@@"),
        chat("where ?", "data:image/png;base64,aGVsbG8="),
        chat("where ?", TRUNCATED),
        chat("where ?", "no such file"),
        chat("where ?", url(Image.new("RGB", (64, 64))), method="nonsense"),
        chat("where ?", url(Image.new("RGB", (64, 64))), method="feather:layers=4+90"),
        {"max_tokens": 5},
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        chat("where ?", model="another"),
    ],
)
def test_a_bad_request_is_the_clients_error_and_the_server_answers_afterwards(server, body):
    (response,) = ask(server, body)
    assert 400 <= response.status_code < 500, response.text
    scene, question = sample("locate", 7, 0)
    (good,) = ask(server, chat(question.text, url(scene.image)))
    assert good.status_code == 200


def test_the_model_stays(server):
    async def run():
        transport = httpx.ASGITransport(server.server.config.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [(await client.post(path, json={})).status_code for path in ("/reset", "/load_model")]

    assert asyncio.run(run()) == [404, 404]
