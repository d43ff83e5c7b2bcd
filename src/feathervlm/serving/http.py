"""The HTTP side of a server of one pruned model: methods of requests, refusals in one sentence, and counts of tokens.

It stands before any ASGI application that answers in the OpenAI format, and imports no web framework.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

from PIL import Image

from feathervlm.core.errors import PruningError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

ARGUMENTS, METHOD = "mm_processor_kwargs", "feathervlm"
"""Names of the field of a request, and of the entry in it, that hold the method, for every engine."""
UNPRUNED = ("", "none", "unpruned")
"""Methods that prune nothing."""
CLOSED = ("/reset", "/load_model")
"""Paths by which a client could replace the model by one that is not pruned."""
LARGEST = 256 * 2**20
"""Number of bytes of the largest request."""
BAD_INPUT = (ValueError, OSError, KeyError, TypeError, IndexError, Image.DecompressionBombError)
"""What a request with broken pictures or fields that are missing runs into."""


@dataclass
class ServedRequest:
    """A request on its way: its method, and how many visual tokens it had and kept.

    Attributes:
        method: The method; None if it is not pruned.
        visual: Number of visual tokens of its pictures.
        kept: Number of visual tokens after the last stage; None before the model has run.
    """

    method: str | None
    visual: int = 0
    kept: int | None = None


current: ContextVar[ServedRequest | None] = ContextVar("feathervlm_request", default=None)
"""The request of the task that runs."""


class TokenCounts:
    """Counts of visual tokens by method, in the format of Prometheus."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, list[int]] = {}

    def add(self, request: ServedRequest) -> None:
        """Add a request that the model has answered."""
        if request.kept is None:
            return
        with self._lock:
            counts = self._counts.setdefault(request.method or "unpruned", [0, 0, 0])
            for index, number in enumerate((1, request.visual, request.kept)):
                counts[index] += number

    def text(self) -> str:
        """Return the page under /metrics."""
        names = {
            "requests_total": "Requests with pictures that were answered.",
            "visual_tokens_total": "Visual tokens of their pictures, before pruning.",
            "kept_visual_tokens_total": "Visual tokens that stayed until the last layer.",
        }
        lines = []
        with self._lock:
            for index, (name, about) in enumerate(names.items()):
                lines += [f"# HELP feathervlm:{name} {about}", f"# TYPE feathervlm:{name} counter"]
                for method, counts in sorted(self._counts.items()):
                    label = method.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
                    lines.append(f'feathervlm:{name}{{method="{label}"}} {counts[index]}')
        return "\n".join(lines) + "\n"


class PruningRequests:
    """An ASGI application around another one that answers requests with pictures.

    Args:
        application: The application that answers.
        method: The method of requests that do not name one; None to prune nothing.
        per_request: Whether requests may name a method.
        check: Callback that raises `PruningError` unless the model can be pruned with a method.
        name: Name of the model that requests may give.
        counts: Counts to show under /metrics.
    """

    def __init__(
        self,
        application: Application,
        method: str | None,
        per_request: bool,
        check: Callable[[str], None],
        name: str,
        counts: TokenCounts,
    ) -> None:
        self.application, self.method, self.per_request = application, method, per_request
        self.check, self.name, self.counts = check, name, counts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; see the ASGI specification."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
        elif scope["path"] in CLOSED:
            await refuse(send, 404, f"{scope['path']} is closed, for this server has one pruned model.")
        elif scope["path"] == "/metrics":
            await respond(send, 200, self.counts.text().encode(), b"text/plain; version=0.0.4")
        elif scope["method"] != "POST":
            await self.application(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        content = await _read(receive)
        if content is None:
            await refuse(send, 413, f"The request is larger than {LARGEST} bytes; send smaller pictures.")
            return
        try:
            request, body = self._prepare(content)
        except PruningError as error:
            await refuse(send, 400, str(error))
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        token = current.set(request)
        try:
            await self._answer({**scope, "headers": headers}, _replay(body, receive), send, request)
        finally:
            current.reset(token)

    def _prepare(self, content: bytes) -> tuple[ServedRequest, bytes]:
        """Return a request, and its body as the application knows it.

        Raises:
            PruningError: If the body or the method is wrong.
        """
        try:
            body = json.loads(content)
        except ValueError:
            raise PruningError("The body of the request is not JSON; send a JSON object.") from None
        if not isinstance(body, dict):
            raise PruningError("The body of the request is not a JSON object; send one.")
        if body.get("model") == self.name:
            del body["model"]  # the application knows its only model by another name
        arguments = body.pop(ARGUMENTS, None) or {}
        if not isinstance(arguments, dict) or set(arguments) - {METHOD}:
            raise PruningError(f"{ARGUMENTS} has other entries than {METHOD!r}; leave them out.")
        method = self.method
        if METHOD in arguments:
            if not self.per_request:
                raise PruningError("This server has one method for all; start it with --per-request to choose others.")
            method = arguments[METHOD]
            if not isinstance(method, str) or method.strip().endswith(".json"):
                raise PruningError(f"{METHOD}={method!r} is not a method; write a text such as 'feather:keep=0.3'.")
            if method in UNPRUNED:
                method = None
            else:
                self.check(method)
        return ServedRequest(method), json.dumps(body).encode()

    async def _answer(self, scope: Message, receive: Receive, send: Send, request: ServedRequest) -> None:
        held: list[Message] = []  # an error's messages, until their exception is known
        started = False

        async def forward(message: Message) -> None:
            nonlocal started
            if held or (message["type"] == "http.response.start" and message["status"] >= 500):
                held.append(message)
                return
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *_headers(request)]}
            await send(message)

        try:
            await self.application(scope, receive, forward)
        except Exception as error:
            if started:
                raise
            status = 400 if isinstance(error, BAD_INPUT) else 500
            await refuse(send, status, _sentence(error, status))
            return
        for message in held:
            await send(message)


def _sentence(error: Exception, status: int) -> str:
    if isinstance(error, PruningError):
        return str(error)
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, KeyError):
        return f"The request has no {text}; add it."
    return f"The request cannot be answered ({text}); check it." if status == 400 else f"The server failed ({text})."


def _headers(request: ServedRequest) -> list[tuple[bytes, bytes]]:
    if request.kept is None:
        return []
    numbers = {"visual-tokens": request.visual, "kept-tokens": request.kept}
    return [(f"x-feathervlm-{name}".encode(), str(number).encode()) for name, number in numbers.items()]


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that returns the body first, and then what the client sends, such as that it is gone."""
    waiting = [body]

    async def next_message() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return next_message


async def respond(send: Send, status: int, body: bytes, kind: bytes) -> None:
    """Send a whole response."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, reason: str) -> None:
    """Send an error in the format of OpenAI, in one sentence."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"error": {"message": reason, "type": kind, "code": status}}
    await respond(send, status, json.dumps(error).encode(), b"application/json")
