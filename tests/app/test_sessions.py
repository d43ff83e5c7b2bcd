"""What visitors see: parts of the page by their names, errors in one sentence, and every value escaped."""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from feathervlm.app import fragments
from feathervlm.app.compare import Column, Comparison, Step
from feathervlm.app.picture_store import EXAMPLES
from feathervlm.app.session import SHOWN_FILE
from feathervlm.app.state import PageState

STATE = PageState(
    picture="locate-6", question="where is the small yellow square ?", methods=("fastv:layer=2",), rounds=0, maps=False
)
NASTY = "<img src=x onerror=alert(1)>\"'&${7*7}{{7*7}}"


def merged(parts):
    """The page after all changes."""
    page = {}
    for one in parts:
        page |= one
    return page


def text(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html)).strip()


@pytest.fixture(scope="module")
def shown(models, tmp_path_factory):
    from feathervlm.app.picture_store import PictureStore
    from feathervlm.app.session import Sessions

    folder = tmp_path_factory.mktemp("pictures")
    sessions = Sessions(models, PictureStore(folder), folder)
    return sessions, list(sessions.compare(STATE, "visitor"))


def test_a_comparison_fills_the_page(shown):
    _, parts = shown
    page = merged(parts)
    assert (page["running"], parts[0]["running"], page["depth"]) == (False, True, 16)
    assert text(page["progress"]) == "Done."
    assert "unpruned" in page["answer0"]
    assert "layer=2" in page["answer1"]
    assert page["answer2"] == page["picture2"] == page["facts2"] == ""
    assert "64 in layers 2 to 15" in page["facts1"]
    assert "bottom third" in page["facts1"]
    assert 'role="img" aria-label="Visual tokens per layer: 256 in layers 0 to 1' in page["facts1"]
    assert all('alt="' in page[f"picture{at}"] for at in (0, 1))
    assert page["link"] == STATE.link()
    assert "feathervlm run" in page["commands"]
    assert "fastv:layer=2" in page["code"]


def test_another_layer_is_another_picture(shown):
    sessions, parts = shown
    comparison = merged(parts)["comparison"]
    first, last = sessions.redraw(comparison, 0), sessions.redraw(comparison, 15)
    assert "Layer 0 sees 256 of 256" in text(first["picture1"])
    assert "Layer 15 sees 64 of 256" in text(last["picture1"])
    assert first["picture1"] != last["picture1"]
    assert sessions.redraw(comparison, 99)["picture1"] == last["picture1"], "a link of a deeper model"
    assert sessions.redraw(None, 3) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": ""}, "There is no question; write one about the picture."),
        ({"picture": ""}, "There is no picture; upload one, paste one, or choose an example."),
        ({"picture": "gone"}, "The picture of this link is not on this page any more; upload it again."),
        ({"model": "/no/such/model"}, "There is no model directory '/no/such/model'"),
        ({"question": "where is the zebra ?"}, "zebra"),
    ],
)
@pytest.mark.parametrize("tab", ["compare", "sweep"])
def test_errors_are_one_sentence_on_the_page(sessions, tab, changes, words):
    page = merged(getattr(sessions, tab)(replace(STATE, **changes), "visitor"))
    assert words in text(page["progress"]).replace("&#39;", "'")
    assert 'role="alert"' in page["progress"]
    assert not page.get("running")
    assert page.get("code", "") == ""


def test_a_sweep_fills_the_page(sessions):
    page = merged(sessions.sweep(replace(STATE, sweep="fastv:layer=2"), "visitor"))
    assert page["sweep"].count("<figure") == 10
    assert "keep 100 %" in text(page["sweep"])
    assert "keep 3 %" in text(page["sweep"])
    assert "and turns at keep=" in text(page["sweep"])
    assert "tab=sweep" in page["link"]
    assert "uniform has no budget" in text(
        merged(sessions.sweep(replace(STATE, sweep="uniform"), "visitor"))["progress"]
    )


def test_a_run_can_be_stopped(sessions):
    parts = sessions.compare(STATE, "visitor")
    next(parts)
    next(parts)
    sessions.stop("another")
    sessions.stop("visitor")
    page = merged(parts)
    assert text(page["progress"]) in ("The run was stopped.", "Done.")
    assert not page["running"]
    assert sessions._jobs == {}
    sessions.stop("visitor")  # there is nothing to stop


def test_links_are_opened(sessions):
    state = replace(STATE, picture=EXAMPLES[2], methods=("feather:layers=4+9", "pool"), layer=7)
    assert sessions.open_link(parse_qsl(state.link()[1:])) == (state, "")
    assert sessions.open_link([]) == (None, "")
    assert sessions.open_link([("picture", "gone")])[1].endswith("upload it again.")
    assert sessions.open_link([("question", "x"), ("layer", "x")])[1].startswith("The link has layer=")


def test_pictures_are_taken_or_refused(sessions, demo):
    sessions.uploads.mkdir()
    good, bad = sessions.uploads / "scene.png", sessions.uploads / "x.png"
    good.write_bytes((demo / "scene.png").read_bytes())
    bad.write_bytes(b"no")
    stored, problem = sessions.take(str(good), "my scene.png")
    assert (stored.name, problem) == ("my scene.png", "")
    assert sessions.take(str(bad), "x.png")[1].startswith("x.png ")
    assert sessions.take(None, "") == (None, "")
    for path in (demo / "scene.png", sessions.uploads / "../../scene.png", "/etc/passwd", ""):
        assert sessions.take(str(path), "x.png") == (None, "The picture was not uploaded to this page; upload it.")
    shown = Path(sessions.preview(stored))
    assert SHOWN_FILE.fullmatch(shown.name)
    assert shown.parent == sessions.uploads
    (sessions.uploads / "link.png").symlink_to(demo / "scene.png")
    assert sessions.take(str(sessions.uploads / "link.png"), "x.png")[0] is None


def test_every_value_is_escaped(store):
    column = Column(NASTY, text=NASTY, tokens=3, notes=[NASTY], findings=[("warning", [NASTY], NASTY)])
    failed = Column(NASTY, error=NASTY)
    comparison = Comparison(STATE, store.get("locate-6"), NASTY, 16, 256, [Column("unpruned"), column, failed])
    column.why_no_maps = NASTY
    for html in (
        fragments.answer(column),
        fragments.answer(failed),
        fragments.picture(comparison, column, 0),
        fragments.facts(comparison, column, 0),
        fragments.progress(Step(1, 2, NASTY)),
        fragments.progress(text=NASTY),
        fragments.code(NASTY, NASTY),
    ):
        assert "<img src=x" not in html
        assert "&lt;img src=x" in html
