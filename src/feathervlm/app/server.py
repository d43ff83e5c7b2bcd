"""Serves the page: on this machine alone unless told otherwise, and then to those who know the token."""

import hmac
import os
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from feathervlm.app.model_cache import ModelCache
from feathervlm.app.picture_store import MEGABYTES, PictureStore
from feathervlm.app.session import Sessions
from feathervlm.core.errors import PruningError
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.utils.pictures import BACKGROUND
from feathervlm.utils.progress import Say

# Read by gradio and huggingface_hub when they are imported: they send nothing anywhere.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

COOKIE = "feathervlm-token"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'; form-action 'self'"
)
"""What the browser may load: this page only."""
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",  # without a referrer the form of the token has no origin, and is refused
    "x-content-type-options": "nosniff",
}
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>feathervlm</title>
<body style="font-family: system-ui, sans-serif; max-width: 32rem; margin: 12vh auto; padding: 0 1rem">
<h1>feathervlm</h1><p>{sentence}</p><form method="post" action="/token">
<label>Token <input type="password" name="token" autofocus required autocomplete="off"></label>
<button>Open</button></form></body></html>"""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """Where the page is.

    Args:
        host: Address or name to listen at.
        port: Port; 0 for any that is free.
        token: Token that visitors have to know; None for none on this machine, and a random one elsewhere.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the page."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def secret(self) -> str | None:
        """Return the token that visitors have to know.

        Raises:
            PruningError: The token is too short to protect anything.
        """
        if self.token is None:
            return None if self.local else secrets.token_urlsafe(18)
        if len(self.token) < 8:
            raise PruningError(f"A token of {len(self.token)} characters can be guessed; give 8 or more.")
        return self.token


class Guard:
    """Lets requests through that come from the page's own address and, if there is one, with the token.

    Args:
        app: The application.
        local: Whether the page is for this machine only; then the address has to be a name of it, so that no other
            site can make a browser talk to the page under its own name.
        token: The token; None for none.
    """

    def __init__(self, app: App, *, local: bool, token: str | None) -> None:
        self.app, self.local, self.token = app, local, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal or scope["type"] == "websocket":  # the page has none
            await _text(send, 403, refusal or "There are no sockets here.")
        elif self.token is not None and (not self._knows(headers) or self._same(_token_in_address(scope))):
            await self._ask(scope, receive, send)  # who is known is led to the address without the token
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, headers: dict[str, str]) -> str:
        host = headers.get("host", "")
        if self.local and not Served(urlsplit(f"//{host}").hostname or "").local:
            return f"This page is for this machine only; open it at http://127.0.0.1, not at {host}."
        origin = headers.get("origin", "")
        if origin and urlsplit(origin).netloc != host:
            return "This request comes from another site, which may not use this page."
        return ""

    def _knows(self, headers: dict[str, str]) -> bool:
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        return self._same(cookies.get(COOKIE, ""))

    def _same(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), (self.token or "").encode())

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        query, given = _query(scope), _token_in_address(scope)
        query.pop("token", None)
        if scope["path"] == "/token" and scope["method"] == "POST":
            form = parse_qs((await _body(receive)).decode("utf-8", "replace"))
            given, query = form.get("token", [""])[-1], {}
        if given and self._same(given):
            where = "/" + (f"?{urlencode(query, doseq=True)}" if query else "")
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _respond(send, 303, b"", [("location", where), ("set-cookie", cookie)])
            return
        sentence = (
            "That is not the token; copy it from the terminal."
            if given
            else ("This page asks for the token that the terminal shows.")
        )
        body = ASK.format(sentence=escape(sentence)).encode()
        await _respond(send, 401, body, [("content-type", "text/html; charset=utf-8")])


class RunningPage:
    """A page that can be served; its pictures are removed when the block is left.

    Attributes:
        address: Where browsers find it.
        sessions: What serves its visitors.
        server: The server of uvicorn.
    """

    def __init__(self, address: str, sessions: Sessions, server: Any, listening: socket.socket, folder: Any) -> None:
        self.address, self.sessions, self.server, self._listening, self._folder = (
            address, sessions, server, listening, folder,
        )  # fmt: skip

    def run(self) -> None:
        """Serve until the process is interrupted or `server.should_exit` is set."""
        with suppress(KeyboardInterrupt):  # which uvicorn raises again after it has ended
            self.server.run(sockets=[self._listening])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._folder.cleanup()


def start(spec: ModelSpec, served: Served, *, background: str = BACKGROUND, say: Say = lambda now: None) -> RunningPage:
    """Load the model and make the page.

    Args:
        spec: The model.
        served: Where the page is to be.
        background: Colour under transparent parts of pictures.
        say: Callback, called with what happens now.

    Raises:
        PruningError: The model, the address or the token does not work.
    """
    token = served.secret()
    with ExitStack() as undo:
        listening = undo.enter_context(listen(served))
        folder = tempfile.TemporaryDirectory(prefix="feathervlm-app-")
        undo.callback(folder.cleanup)
        models = ModelCache(spec, others=served.local)
        models.get(spec.model, say)
        say("importing gradio")
        pictures, uploads = (Path(folder.name) / name for name in ("pictures", "uploads"))
        pictures.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        sessions = Sessions(models, PictureStore(pictures, background), uploads)
        server = _server(sessions, served, listening, token)
        undo.pop_all()
    host = f"[{served.host}]" if ":" in served.host else served.host
    address = f"http://{host}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    return RunningPage(address, sessions, server, listening, folder)


def _server(sessions: Sessions, served: Served, listening: socket.socket, token: str | None) -> Any:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from feathervlm.app import look
    from feathervlm.app.page import build

    page = build(sessions)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, "/", server_name=served.host,
        server_port=listening.getsockname()[1], footer_links=[], ssr_mode=False, max_file_size=f"{MEGABYTES}mb",
        theme=look.theme(), css_paths=[look.STYLE], head=look.HEAD, enable_monitoring=False, pwa=False,
        show_error=False,
    )  # fmt: skip
    guard: Any = Guard(app, local=served.local, token=token)
    return uvicorn.Server(uvicorn.Config(guard, log_level="warning", access_log=False))


def listen(served: Served) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        PruningError: The address is not one of this machine, or the port is in use.
    """
    try:
        return socket.create_server(
            (served.host.strip("[]"), served.port), family=socket.AF_INET6 if ":" in served.host else socket.AF_INET
        )
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise PruningError(
            f"The page cannot be served at {served.host}, port {served.port} ({reason}); give another --host or --port."
        ) from None


def _with_headers(send: Send) -> Send:
    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = message | {"headers": [*message.get("headers", []), *added]}
        await send(message)

    return sent


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _token_in_address(scope: Scope) -> str:
    return _query(scope).get("token", [""])[-1]


async def _body(receive: Receive, limit: int = 4096) -> bytes:
    body = b""
    while len(body) < limit:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:limit]


async def _text(send: Send, status: int, sentence: str) -> None:
    await _respond(send, status, sentence.encode(), [("content-type", "text/plain; charset=utf-8")])


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    pairs = [*headers, *HEADERS.items(), ("content-length", str(len(body)))]
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
