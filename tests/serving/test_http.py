"""The HTTP side of a server, before an application that is made up here."""

import asyncio
import json

import pytest

from feathervlm.core.errors import PruningError
from feathervlm.serving.http import CLOSED, PruningRequests, ServedRequest, TokenCounts, current


def check(method):
    if method != "divprune:keep=0.25":
        raise PruningError(f"There is no method {method!r}.")


class Answering:
    """An application that remembers the request, and may fail before or after it has begun to respond."""

    def __init__(self, error=None, late=False, framework=False):
        self.error, self.late, self.framework = error, late, framework
        self.body = self.request = None

    async def __call__(self, scope, receive, send):
        self.request = current.get()
        self.body = json.loads((await receive())["body"])
        if self.error is not None and not self.late:
            if self.framework:  # web frameworks respond with an error and raise the exception again
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"Internal Server Error"})
            raise self.error
        if self.request is not None and self.request.method:
            self.request.visual, self.request.kept = 256, 64
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.late:
            raise self.error
        await send({"type": "http.response.body", "body": b"{}"})


def post(application, body, path="/v1/chat/completions", method="feather", per_request=True, verb="POST"):
    """Return the status, the headers and the body of a response."""
    counts = TokenCounts()
    server = PruningRequests(application, method, per_request, check, "embedded", counts)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [
        {"type": "http.request", "body": content[:5], "more_body": True},
        {"type": "http.request", "body": content[5:]},
    ]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": verb, "path": path, "headers": [(b"content-length", b"1")]}
    asyncio.run(server(scope, receive, send))
    assert current.get() is None
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), text


def chosen(spec):
    return {"messages": [], "model": "embedded", "mm_processor_kwargs": {"feathervlm": spec}}


@pytest.mark.parametrize(
    ("body", "method"),
    [({"messages": []}, "feather"), (chosen("divprune:keep=0.25"), "divprune:keep=0.25"), (chosen("none"), None)],
)
def test_a_request_has_its_own_method_or_that_of_the_server(body, method):
    application = Answering()
    status, headers, _ = post(application, body)
    assert status == 200
    assert application.request.method == method
    assert application.body == {"messages": []}  # as the application knows it, without a name of the model
    assert headers == ({b"x-feathervlm-visual-tokens": b"256", b"x-feathervlm-kept-tokens": b"64"} if method else {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{not json", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ([1], "is not a JSON object"),
        (chosen("nonsense"), "There is no method 'nonsense'"),
        (chosen(7), "feathervlm=7 is not a method"),
        (chosen("/etc/passwd.json"), "is not a method"),
        ({"mm_processor_kwargs": {"min_pixels": 1}}, "other entries"),
        ({"mm_processor_kwargs": "x"}, "other entries"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(body, reason):
    application = Answering()
    status, _, text = post(application, body)
    assert status == 400
    assert reason in json.loads(text)["error"]["message"]
    assert application.body is None


def test_clients_choose_only_if_the_server_lets_them():
    status, _, text = post(Answering(), chosen("divprune:keep=0.25"), per_request=False)
    assert status == 400
    assert "--per-request" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (OSError("cannot identify image file"), 400, "cannot identify image file"),
        (ValueError("Incorrect padding"), 400, "Incorrect padding"),
        (KeyError("messages"), 400, "has no 'messages'"),
        (PruningError("The prompt has no picture."), 400, "The prompt has no picture."),
        (RuntimeError("out of memory\nat address 7"), 500, "out of memory at address 7"),
    ],
)
@pytest.mark.parametrize("framework", [False, True])
def test_an_error_is_one_sentence_and_says_whose_it_is(error, status, reason, framework):
    answered, _, text = post(Answering(error, framework=framework), {"messages": []})
    message = json.loads(text)["error"]["message"]
    assert answered == status
    assert reason in message
    assert "\n" not in message


def test_an_error_after_the_response_has_begun_is_the_frameworks():
    with pytest.raises(RuntimeError, match="later"):
        post(Answering(RuntimeError("later"), late=True), {"messages": []})


@pytest.mark.parametrize("path", CLOSED)
def test_the_model_cannot_be_replaced(path):
    assert post(Answering(), {}, path)[0] == 404


def test_counts_are_by_method():
    counts = TokenCounts()
    for request in (ServedRequest("a", 100, 30), ServedRequest("a", 100, 20), ServedRequest('b"', 9, 9)):
        counts.add(request)
    counts.add(ServedRequest("a", 100))  # not answered
    lines = counts.text().splitlines()
    assert 'feathervlm:visual_tokens_total{method="a"} 200' in lines
    assert 'feathervlm:kept_visual_tokens_total{method="a"} 50' in lines
    assert 'feathervlm:requests_total{method="b\\""} 1' in lines
    assert post(Answering(), {}, "/metrics", verb="GET")[0] == 200
