"""The page in a real browser: Debian's Chromium, driven by playwright; where one is missing the tests are skipped.

No test may leave an error in the console of the browser, and nothing may be fetched from anywhere but the page itself.
"""

import os
import shutil
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = 25_000
"""Milliseconds after which a test gives up."""
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="session")
def connections():
    """Every address that this process connects to while the page is served."""
    found, connect = [], socket.socket.connect

    def recorded(self, address):
        found.append(address)
        return connect(self, address)

    socket.socket.connect = recorded
    yield found
    socket.socket.connect = connect


def serving(served):
    """A page that runs in a thread until the block is left."""
    from contextlib import contextmanager

    from feathervlm.app.server import start
    from feathervlm.inference.model_spec import ModelSpec

    @contextmanager
    def run():
        with start(ModelSpec(), served) as page:
            thread = threading.Thread(target=page.run)
            thread.start()
            yield page
            page.server.should_exit = True
            thread.join(30)

    return run()


@pytest.fixture(scope="session")
def served(connections):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'feathervlm[app]'")
    from feathervlm.app.server import Served

    with serving(Served(port=0)) as page:
        yield page


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, served):
    """Return a function that opens the page as a new visitor."""
    contexts, problems = [], []

    def open_page(address="", width=1600, height=1000, allowed=(), **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(LONG)
        contexts.append(context)
        page = context.new_page()
        host = urlsplit(served.address).netloc

        def look(request):
            address = urlsplit(request.url)
            if address.scheme not in ("data", "blob") and address.netloc != host:
                problems.append(f"fetched from outside: {request.url}")

        page.on("request", look)
        page.on("pageerror", lambda error: problems.append(f"error in the page: {error}"))
        page.on(
            "console",
            lambda message: (
                problems.append(f"{message.type}: {message.text}")
                if message.type == "error" and not any(words in message.text for words in allowed)
                else None
            ),
        )
        page.goto(address or served.address)
        # Until it says something, what is pressed may be lost.
        page.wait_for_function("() => document.querySelector('#fv-progress span')?.textContent.trim()")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def screenshot(tmp_path):
    """Return a function that saves a small picture of a page: in $FEATHERVLM_SCREENSHOTS if that is set."""
    from PIL import Image

    def save(page, name, width, *, full=True, clip=None):
        folder = Path(os.environ.get("FEATHERVLM_SCREENSHOTS") or tmp_path)
        page.screenshot(path=tmp_path / "whole.png", full_page=full, animations="disabled", clip=clip)
        picture = Image.open(tmp_path / "whole.png").convert("RGB")
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        picture.quantize(128, dither=Image.Dither.NONE).save(folder / name, optimize=True)
        assert (folder / name).stat().st_size < 400_000

    return save
