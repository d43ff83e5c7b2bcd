"""The page: what is where, and what happens when it is pressed."""

from typing import Any

import gradio as gr

from feathervlm.app import fragments
from feathervlm.app.picture_store import EXAMPLES, MEGABYTES, MEGAPIXELS
from feathervlm.app.session import SHOWN, Sessions
from feathervlm.app.slots import Slot, slot
from feathervlm.app.state import QUESTION, ROUNDS, TOKENS, PageState
from feathervlm.app.wiring import Wiring
from feathervlm.embedded.assets import default_methods
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import available, get

LEGEND = (
    '<p class="fv-legend"><span><i style="background:#e8eef7"></i>kept token</span>'
    '<span><i style="background:#2b54a0"></i>merged into a kept token</span>'
    '<span><i style="background:#127880"></i>frozen: read, not updated</span>'
    '<span><i style="background:#9c701c"></i>waiting: may come back</span>'
    '<span><i style="background:#2b2f36"></i>dropped token</span>'
    '<span><i style="background:#07080a"></i>not shown to the model</span></p>'
)


def build(sessions: Sessions) -> gr.Blocks:
    """Make the page.

    Args:
        sessions: What serves its visitors.
    """
    model, depth = sessions.models.spec.model, sessions.models.depth
    # A third of the depth comes after the first cuts of most methods.
    start = PageState(model, EXAMPLES[0], "", default_methods(model), layer=depth // 3)
    with gr.Blocks(title="feathervlm", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML(
            '<header class="fv-title"><h1>feathervlm</h1><p>Which visual tokens a method keeps, and what it answers. '
            "Everything runs on this machine.</p></header>"
        )
        parts = _inputs(sessions, start)
        parts["progress"] = gr.HTML(fragments.progress(), elem_id="fv-progress")
        with gr.Tabs(selected=start.tab, elem_id="fv-tabs") as tabs:
            with gr.Tab("Compare methods", id="compare"):
                slots = _comparison(parts, start, depth)
            with gr.Tab("Sweep a budget", id="sweep"):
                sweep_slot = _sweep(parts, start)
        _repeat(parts)
        Wiring(sessions, parts, slots, sweep_slot, tabs).connect(page)
    return page


def _inputs(sessions: Sessions, start: PageState) -> dict[str, Any]:
    parts: dict[str, Any] = {"key": gr.State(start.picture), "comparison": gr.State(None)}
    first = sessions.store.get(start.picture)
    with gr.Row(elem_classes="fv-columns"):
        with gr.Column(scale=2, min_width=260):
            parts["picture"] = gr.Image(
                sessions.preview(first), label="Picture", sources=["upload", "clipboard", "webcam"], height=260,
                buttons=[], elem_id="fv-picture", type="filepath",
            )  # fmt: skip
            gr.HTML(f'<p class="fv-limits">At most {MEGABYTES} MB and {MEGAPIXELS} million pixels.</p>')
        with gr.Column(scale=3, min_width=280):
            gr.HTML('<p class="fv-caption">Examples: scenes of the embedded model, with a question each.</p>')
            parts["examples"] = gr.Gallery(
                [(sessions.store.get(key).picture, key.partition("-")[0]) for key in EXAMPLES],
                label="Examples", show_label=False, columns=6, rows=1, height="auto", allow_preview=False,
                interactive=False, object_fit="contain", buttons=[], elem_id="fv-examples", format="png",
                container=False,
            )  # fmt: skip
            question = first.question.text if first.question else ""
            parts["question"] = gr.Textbox(
                question, label="Question", lines=2, max_length=QUESTION, elem_id="fv-question"
            )
            with gr.Accordion("Settings", open=False):
                parts["model"] = gr.Textbox(
                    start.model, label="Model", info="embedded, a directory, or an id on the hub.",
                    interactive=sessions.models.others, max_length=500,
                )  # fmt: skip
                parts["tokens"] = gr.Slider(
                    0, TOKENS, start.tokens, step=1, label="Length of the answer", info="In tokens; 0: as usual."
                )
                parts["rounds"] = gr.Slider(
                    0, ROUNDS, start.rounds, step=1, label="Timed runs", info="After the answer, which warms up."
                )
                parts["maps"] = gr.Checkbox(
                    start.maps, label="Score maps", info="Two more runs of each method, with and without RoPE."
                )
    return parts


def _comparison(parts: dict[str, Any], start: PageState, depth: int) -> list[Slot]:
    with gr.Row():
        parts["run"] = gr.Button("Compare", variant="primary", elem_id="fv-run", scale=2, min_width=120)
        parts["stop"] = gr.Button("Stop", interactive=False, elem_id="fv-stop", min_width=80)
        parts["more"] = gr.Button("Add a method", elem_id="fv-more", min_width=120)
    parts["layer"] = gr.Slider(
        0, depth - 1, start.layer, step=1, label="Layer", info="Shows the tokens that this layer of the model sees.",
        elem_id="fv-layer",
    )  # fmt: skip
    gr.HTML(LEGEND)
    slots = []
    with gr.Row(elem_classes="fv-columns"):
        for at in range(SHOWN):
            spec = start.methods[at - 1] if 0 < at <= len(start.methods) else ""
            shown = at <= len(start.methods)
            with gr.Column(min_width=230, visible=shown, elem_id=f"fv-column{at}") as parts[f"column{at}"]:
                if at:
                    slots.append(slot(f"Method {at}", spec))
                else:
                    gr.Dropdown([UNPRUNED], value=UNPRUNED, label="Baseline", interactive=False)
                    with gr.Accordion("About", open=False):
                        gr.HTML('<p class="fv-note">The model without pruning, which all shares refer to.</p>')
                for name in ("answer", "picture", "facts"):
                    parts[f"{name}{at}"] = gr.HTML(elem_id=f"fv-{name}{at}")
    return slots


def _sweep(parts: dict[str, Any], start: PageState) -> Slot:
    solvable = tuple(name for name in available() if get(name).budget_parameter is not None)
    with gr.Row(elem_classes="fv-columns"):
        with gr.Column(scale=1, min_width=230):
            found = slot("Method", start.methods[-1], names=solvable, optional=False)
        with gr.Column(scale=2, min_width=230):
            gr.HTML(
                '<p class="fv-note">The budget parameter of the method goes from 100 % down to 3 %, with the picture, '
                "the question and the settings above. Every picture shows the tokens of the last layer.</p>"
            )
            with gr.Row():
                parts["sweep_run"] = gr.Button("Sweep", variant="primary", elem_id="fv-sweep-run", min_width=120)
                parts["sweep_stop"] = gr.Button("Stop", interactive=False, elem_id="fv-sweep-stop", min_width=80)
    parts["sweep"] = gr.HTML(elem_id="fv-sweep")
    return found


def _repeat(parts: dict[str, Any]) -> None:
    with gr.Accordion("Repeat what is on the screen", open=False, elem_id="fv-repeat"):
        with gr.Row():
            for name, label in (("python", "Python lines"), ("commands", "commands"), ("link", "link")):
                parts[name] = gr.Textbox(visible=False)
                button = gr.Button(f"Copy {label}", min_width=120, elem_id=f"fv-copy-{name}")
                text = "location.href" if name == "link" else "text"
                button.click(None, parts[name], None, js=f"(text) => fvCopy({text}, '{label[0].upper()}{label[1:]}')")
        gr.HTML('<p id="fv-copied" role="status"></p>')
        parts["code"] = gr.HTML(elem_classes="fv-code")
