"""The guard of the page: this machine only, or a token; the page's own address only; headers that keep it alone."""

import asyncio
import re
import socket
from urllib.parse import urlencode

import pytest

from feathervlm import PruningError
from feathervlm.app.server import COOKIE, POLICY, Guard, Served, listen

TOKEN = "a long secret"


async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"the page"})


def ask(guard, path="/", *, method="GET", host="127.0.0.1:7860", query="", body=b"", kind="http", **headers):
    """Status, headers and body of an answer."""
    named = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": kind, "method": method, "path": path, "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    start, *bodies = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(one["body"] for one in bodies).decode()


LOCAL, GUARDED = Guard(page, local=True, token=None), Guard(page, local=False, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "127.0.0.1"])
def test_this_machine_is_let_in(host):
    status, headers, body = ask(LOCAL, host=host, origin=f"http://{host}")
    assert (status, body) == (200, "the page")
    assert headers["content-security-policy"] == POLICY
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:7860", "192.168.0.5:7860", "", "localhost.evil"]
)
def test_other_names_of_this_machine_are_refused(host):
    status, _, body = ask(LOCAL, host=host)
    assert status == 403
    assert re.fullmatch(r"This page is for this machine only; open it at .*\.", body)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8000"])
@pytest.mark.parametrize("guard", [LOCAL, GUARDED], ids=["local", "guarded"])
def test_other_sites_are_refused(guard, origin):
    status, _, body = ask(guard, "/gradio_api/run/predict", method="POST", origin=origin)
    assert status == 403
    assert "from another site" in body


def test_sockets_are_refused():
    assert ask(LOCAL, kind="websocket")[0] == 403


def test_the_token_is_asked_for_and_kept_in_a_cookie():
    status, headers, body = ask(GUARDED, host="192.168.0.5:7860")
    assert status == 401
    assert "<form" in body
    assert TOKEN not in body
    assert "content-security-policy" in headers
    wrong = ask(GUARDED, "/token", method="POST", body=b"token=wrong")
    assert wrong[0] == 401
    assert "That is not the token" in wrong[2]
    status, headers, _ = ask(GUARDED, "/token", method="POST", body=urlencode({"token": TOKEN}).encode())
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert ask(GUARDED, cookie=f"other=1; {cookie}")[0] == 200
    assert ask(GUARDED, cookie=f"{COOKIE}=wrong")[0] == 401
    assert ask(GUARDED, "/gradio_api/file=/etc/passwd")[0] == 401


@pytest.mark.parametrize("known", [{}, {"cookie": f"{COOKIE}={TOKEN}"}], ids=["first", "known"])
def test_the_address_with_the_token_leads_to_one_without_it(known):
    status, headers, _ = ask(GUARDED, query=urlencode({"token": TOKEN, "question": "a b"}), **known)
    assert (status, headers["location"]) == (303, "/?question=a+b")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.0.1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.5", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_are_this_machine(host, local):
    served = Served(host)
    assert served.local == local
    assert (served.secret() is None) == local
    assert local or (len(served.secret()) >= 20 and served.secret() != served.secret())
    assert Served(host, token=TOKEN).secret() == TOKEN


def test_a_short_token_is_refused():
    with pytest.raises(PruningError, match="A token of 4 characters can be guessed; give 8 or more"):
        Served(token="1234").secret()


def test_a_port_in_use_is_one_sentence():
    with listen(Served(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PruningError, match=rf"127\.0\.0\.1, port {port} \(address already in use\); give"):
            listen(Served(port=port))
    with pytest.raises(PruningError, match=r"cannot be served at 203\.0\.113\.7, port 7860 \("):
        listen(Served("203.0.113.7"))
    assert isinstance(taken, socket.socket)
