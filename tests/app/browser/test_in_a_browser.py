"""What a visitor does: pictures, methods, layers, warnings, stop, errors, links, keyboard, narrow and wide screens."""

import re
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'feathervlm[app]'")
pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")

from feathervlm.app import picture_store
from feathervlm.app.server import Served

from conftest import serving  # isort: skip

NARROW, WIDE = 400, 1600
ANSWERS = """() => [0, 1, 2, 3, 4].map((at) => document.querySelector(`#fv-answer${at} .fv-answer`)?.textContent)"""


def progress(page, words):
    """Wait until the line of the page says something."""
    page.locator("#fv-progress", has_text=words).wait_for()


def run(page):
    page.click("#fv-run")
    progress(page, "Done.")
    page.wait_for_selector("#fv-run:not([disabled])")


def clear(page):
    page.click("#fv-picture button[aria-label='Remove Image']")
    page.locator("#fv-picture img").wait_for(state="detached")


def choose(page, label, name):
    """Choose a method."""
    box = page.get_by_role("combobox", name=label, exact=True)
    box.click()
    box.fill(name)
    box.press("Enter")  # the list has been filtered to this one


def upload(page, path):
    clear(page)
    page.set_input_files("#fv-picture input[type=file]", path)


@pytest.fixture
def held(served):
    """Let a run go no further than the third layer until the event is set."""
    release, reached = threading.Event(), threading.Event()
    layer = served.sessions.models.get("embedded").model.model.language_model.layers[3]

    def wait(*_):
        reached.set()
        release.wait(60)

    handle = layer.register_forward_pre_hook(wait)
    yield reached, release
    release.set()
    handle.remove()


def test_two_methods_are_compared_layer_by_layer(visit, screenshot):
    page = visit()
    run(page)
    unpruned, fastv, feather, *rest = page.evaluate(ANSWERS)
    assert unpruned == feather != fastv
    assert rest == [None, None]
    for at, tokens in enumerate((256, 64, 104)):
        assert f"Layer 5 sees {tokens} of 256 tokens" in page.inner_text(f"#fv-picture{at}")
        assert page.locator(f"#fv-picture{at} img").count() == 3, "kept tokens, scores with and without RoPE"
        assert "first token" in page.inner_text(f"#fv-facts{at}")
    assert "82 % of the tokens kept before layer 2 are in the bottom third" in page.inner_text("#fv-facts1")
    assert "localization will suffer" in page.inner_text("#fv-facts1")
    before = page.get_attribute("#fv-picture2 img", "src")
    screenshot(page, "app.png", 1200)
    slider = page.locator("#fv-layer input[type=range]")
    slider.fill("12")
    page.locator("#fv-picture2", has_text="Layer 12 sees 9 of 256 tokens").wait_for()
    assert page.get_attribute("#fv-picture2 img", "src") != before
    slider.fill("0")
    page.locator("#fv-picture1", has_text="no score maps before layer 0, as no layer comes before it").wait_for()


def test_four_methods_with_parameters_from_controls(visit):
    page = visit()
    for at in (3, 4):
        page.click("#fv-more")
        page.locator(f"#fv-column{at}").wait_for()
    for at, name in ((3, "visionzip"), (4, "pool")):
        choose(page, f"Method {at}", name)
    page.locator("#fv-column1 button", has_text="Parameters").click()
    spec = page.locator("#fv-column1 label", has_text="Spec").locator("textarea, input")
    page.locator("#fv-column1 input[type=checkbox]").click()
    page.wait_for_function("(box) => box.value.includes('rope=false')", arg=spec.element_handle())
    keep = page.locator("#fv-column1 input[type=number]")
    keep.fill("0.5")
    keep.press("Enter")
    layer = page.locator("#fv-column1 label", has_text="Tokens leave before").locator("textarea, input")
    layer.fill("400")
    layer.press("Enter")
    page.wait_for_function("(box) => box.value.includes('layer=400')", arg=spec.element_handle())
    layer.fill("3+")
    layer.press("Enter")
    page.locator("#fv-column1 .fv-error", has_text="is neither a layer").wait_for()
    layer.fill("3")
    layer.press("Enter")
    page.wait_for_function("(box) => box.value.startsWith('fastv:layer=3,')", arg=spec.element_handle())
    run(page)
    assert "rope=false" in page.inner_text("#fv-answer1")
    assert all(page.evaluate(ANSWERS))
    assert "merged" in page.inner_text("#fv-facts4")


def test_a_picture_is_uploaded(visit, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), np.uint8)).save(tmp_path / "my photo.tiff")
    page = visit()
    upload(page, tmp_path / "my photo.tiff")
    page.locator("#fv-picture img").wait_for()
    page.wait_for_function("() => document.querySelector('#fv-picture img').naturalWidth === 200")
    page.fill("#fv-question textarea", "what is the background ?")
    run(page)
    page.locator("#fv-repeat button", has_text="Repeat").first.click()
    page.locator("#fv-repeat", has_text="my photo.tiff").wait_for()
    assert page.locator("#fv-answer0 .fv-grade").count() == 0, "no right answer is known"


def test_a_picture_is_pasted(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    clear(page)
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(64, 48);
            canvas.getContext("2d").fillRect(0, 0, 20, 20);
            const blob = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }"""
    )
    page.click("#fv-picture button[aria-label='Paste from clipboard']")
    page.wait_for_function("() => document.querySelector('#fv-picture img')?.naturalWidth === 64")


def test_a_picture_is_taken_with_the_camera(visit):
    # gradio asks for the progress of an upload that does not exist when its camera is opened.
    page = visit(permissions=["camera"], allowed=("404 (Not Found)", "Response"))
    clear(page)
    page.click("#fv-picture button[aria-label='Capture from camera']")
    page.locator("#fv-picture button", has_text="Access Webcam").click()
    page.wait_for_function("() => document.querySelector('#fv-picture video')?.videoWidth > 0")
    page.click("#fv-picture button[aria-label*='capture photo' i]")
    page.wait_for_function("() => document.querySelector('#fv-picture img')?.naturalWidth > 64")
    run(page)
    assert page.evaluate(ANSWERS)[0]


def test_an_example_brings_its_question(visit):
    page = visit()
    page.locator("#fv-examples button").nth(2).click()
    page.wait_for_function("() => document.querySelector('#fv-question textarea').value.includes('which digit')")
    run(page)
    assert page.evaluate(ANSWERS)[0] == "6"
    assert "right" in page.inner_text("#fv-answer0")


def test_a_run_is_stopped(visit, held):
    reached, release = held
    page = visit()
    page.click("#fv-run")
    reached.wait(60)
    progress(page, "1 of 20: unpruned: answering")
    assert page.is_disabled("#fv-run")
    page.click("#fv-stop")
    release.set()
    progress(page, "The run was stopped.")
    page.wait_for_selector("#fv-run:not([disabled])")
    run(page)


def test_a_second_visitor_waits(visit, held):
    reached, release = held
    first, second = visit(), visit()
    first.click("#fv-run")
    reached.wait(60)
    second.click("#fv-run")
    progress(second, "Waiting for 1 other run to end.")
    assert second.is_enabled("#fv-stop")
    release.set()
    progress(first, "Done.")
    progress(second, "Done.")
    assert first.evaluate(ANSWERS) == second.evaluate(ANSWERS)


def test_who_leaves_stops_the_run(visit, held):
    reached, release = held
    gone, stays = visit(), visit()
    gone.click("#fv-run")
    reached.wait(60)
    stays.click("#fv-run")
    progress(stays, "Waiting for 1 other run")
    gone.context.close()
    release.set()
    progress(stays, "Done.")


def test_what_is_wrong_is_one_sentence(visit, served, tmp_path, monkeypatch):
    page = visit()
    page.fill("#fv-question textarea", "  ")
    page.click("#fv-run")
    progress(page, "There is no question; write one about the picture.")
    page.fill("#fv-question textarea", "where is the zebra ?")
    page.click("#fv-run")
    progress(page, "zebra")
    clear(page)
    page.fill("#fv-question textarea", "what is the background ?")
    page.click("#fv-run")
    progress(page, "There is no picture; upload one, paste one, or choose an example.")
    (tmp_path / "text.png").write_text("not a picture")
    page.set_input_files("#fv-picture input[type=file]", tmp_path / "text.png")
    progress(page, "text.png")
    monkeypatch.setattr(picture_store, "MEGAPIXELS", 1)
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    page.set_input_files("#fv-picture input[type=file]", tmp_path / "large.png")
    progress(page, "large.png has 1200 x 1000 pixels, and 1 million pixels is the limit of this page; scale it down.")
    page.locator("#fv-examples button").nth(5).click()
    page.locator("button", has_text="Settings").first.click()
    page.get_by_label("Model").fill("/no/such/model")
    page.click("#fv-run")
    progress(page, "There is no model directory '/no/such/model'")
    page.get_by_label("Model").fill("embedded")
    page.locator("#fv-column1 button", has_text="Parameters").click()
    spec = page.locator("#fv-column1 label", has_text="Spec").locator("textarea, input")
    spec.fill("fastervlm:encoder_layer=99")
    spec.press("Enter")
    run(page)
    assert page.locator("#fv-answer1 .fv-error").count() == 1
    assert page.evaluate(ANSWERS)[2], "the other method answers"


def test_a_link_holds_what_is_on_the_screen(visit):
    page = visit()
    page.locator("#fv-examples button").nth(1).click()
    page.wait_for_function("() => !document.querySelector('#fv-question textarea').value.includes('yellow square')")
    page.locator("#fv-layer input[type=range]").fill("9")
    run(page)
    page.wait_for_url(re.compile("picture=relation-0"))
    again = visit(page.url)
    progress(again, "Done.")
    again.wait_for_function("() => document.querySelectorAll('#fv-picture2 img').length === 3")
    assert again.evaluate(ANSWERS) == page.evaluate(ANSWERS)
    for at in range(3):
        images = [one.evaluate_all("(all) => all.map((i) => i.src)") for one in (
            page.locator(f"#fv-picture{at} img"), again.locator(f"#fv-picture{at} img")
        )]  # fmt: skip
        assert images[0] == images[1] != []
    wrong = visit(page.url.replace("layer=9", "layer=x"))
    progress(wrong, "The link has layer='x'")


def test_lines_are_copied(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    run(page)
    page.locator("#fv-repeat button", has_text="Repeat").first.click()
    for name, words in (("python", "feathervlm.prune"), ("commands", "feathervlm run"), ("link", "picture=locate-6")):
        page.click(f"#fv-copy-{name}")
        page.locator("#fv-copied", has_text="copied").wait_for()
        assert words in page.evaluate("navigator.clipboard.readText()")
        page.evaluate("() => { document.getElementById('fv-copied').textContent = ''; }")


def test_a_budget_is_swept(visit, screenshot):
    page = visit()
    page.get_by_role("tab", name="Sweep a budget").click()
    choose(page, "Method", "fastv")
    page.click("#fv-sweep-run")
    progress(page, "Done.")
    assert page.locator("#fv-sweep figure").count() == 10
    assert "turns at keep=" in page.inner_text("#fv-sweep .fv-turn")
    screenshot(page, "app-sweep.png", 1200)
    page.wait_for_url(re.compile("tab=sweep"))
    again = visit(page.url)
    progress(again, "Done.")
    assert again.inner_text("#fv-sweep") == page.inner_text("#fv-sweep")


def test_the_keyboard_is_enough(visit):
    page = visit()

    def tab_to(selector, presses=80):
        for _ in range(presses):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => !!document.activeElement?.matches(s)", selector):
                return page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#fv-picture button")
    tab_to("#fv-examples button")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#fv-question textarea').value.includes('which digit')")
    tab_to("#fv-question textarea")
    assert tab_to("#fv-run") != "none", "the focus is seen"
    page.keyboard.press("Enter")
    progress(page, "Done.")
    tab_to("#fv-layer input[type=range]", 120)
    page.keyboard.press("ArrowRight")
    page.locator("#fv-picture1", has_text="Layer 6 sees").wait_for()
    tab_to("#fv-column1 button")
    page.keyboard.press("Enter")
    tab_to("#fv-column1 input[type=checkbox]")
    page.keyboard.press("Space")
    spec = page.locator("#fv-column1 label", has_text="Spec").locator("textarea, input")
    page.wait_for_function("(box) => box.value.includes('rope=false')", arg=spec.element_handle())


CONTRAST = """(selector) => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  return [...document.querySelectorAll(selector)].filter((e) => e.offsetParent && e.textContent.trim()).map((e) => {
    let ground = e, fill = [0, 0, 0, 0];
    while (ground && (fill = numbers(getComputedStyle(ground).backgroundColor))[3] === 0) ground = ground.parentElement;
    const pair = [light(numbers(getComputedStyle(e).color)), light(fill)].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), e.className + ": " + e.textContent.trim().slice(0, 40)];
  });
}"""
TEXTS = ".fv-caption, .fv-note, .fv-answer, .fv-finding p, .fv-right, .fv-wrong, .fv-true, .fv-predicted, figcaption, .fv-limits, .fv-table th, h1, h3"  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_page_is_readable(visit, screenshot, width, scheme):
    page = visit(width=width, color_scheme=scheme)
    run(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "there is nothing to scroll sideways"
    outside = page.evaluate(
        """(width) => [...document.querySelectorAll("button, input, textarea, img, p, td, h1, h3")]
            .filter((e) => e.offsetParent && e.getBoundingClientRect().width > 1)
            .filter((e) => e.getBoundingClientRect().right > width + 1 || e.getBoundingClientRect().left < -1)
            .map((e) => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    small = page.evaluate(
        """() => [...document.querySelectorAll("p, td, th, figcaption, label, button, h3, small")]
            .filter((e) => e.offsetParent && e.innerText?.trim() && parseFloat(getComputedStyle(e).fontSize) < 11)
            .map((e) => e.innerText.slice(0, 40))"""
    )
    assert small == []
    assert [text for ratio, text in page.evaluate(CONTRAST, TEXTS) if ratio < 4.5] == []
    names = {(NARROW, "light"): ("app-narrow.png", 400), (WIDE, "dark"): ("app-dark.png", 1200)}
    if (width, scheme) in names:
        screenshot(page, *names[width, scheme], full=width == WIDE)


def test_the_token_is_asked_for(browser):
    with serving(Served("0.0.0.0", 0, "a long secret")) as guarded:
        address = guarded.address.replace("0.0.0.0", "127.0.0.1").partition("?")[0]
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("Token").fill("wrong token")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("That is not the token").wait_for()
        page.get_by_label("Token").fill("a long secret")
        page.get_by_role("button", name="Open").click()
        page.wait_for_selector("#fv-run")
        page.goto(f"{address}?token=a+long+secret")
        page.wait_for_selector("#fv-run")
        assert "token" not in page.url
        page.close()


def test_the_server_connects_to_this_machine_only(served, connections):
    outside = [one for one in connections if not isinstance(one, tuple) or one[0] not in ("127.0.0.1", "::1")]
    assert [one for one in outside if not str(one).startswith("/")] == []
