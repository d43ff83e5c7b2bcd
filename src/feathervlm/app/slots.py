"""The controls of one method on the page."""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from feathervlm.app.controls import Control, changed, controls
from feathervlm.core.errors import PruningError
from feathervlm.core.spec import split_joined
from feathervlm.embedded.assets import METHODS
from feathervlm.methods import available, get

NOTHING = "no method"
HIDDEN = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""How small events run: at once, also while a model answers."""


@dataclass(frozen=True)
class Slot:
    """A method on the page.

    Attributes:
        name: Choice of a method.
        spec: Spec that runs.
        problem: What is wrong with it.
        fresh: Spec that the controls were last made for; they are made again where it changes.
    """

    name: gr.Dropdown
    spec: gr.Textbox
    problem: gr.HTML
    fresh: gr.State


def slot(label: str, spec: str, *, names: tuple[str, ...] | None = None, optional: bool = True) -> Slot:
    """Make the controls of a method; the spec is what runs, and the other controls read and write it.

    Args:
        label: What the method is called on the page.
        spec: Spec to begin with; empty for none.
        names: Methods to choose from; None for all.
        optional: Whether there may be none.
    """
    choices = [*([NOTHING] if optional else []), *(names or available())]
    name = gr.Dropdown(choices, value=name_of(spec), label=label, container=True)
    fresh = gr.State("")
    with gr.Accordion("Parameters", open=False):
        text = gr.Textbox(
            spec, label="Spec", info="As on the command line; the controls below write it.", max_length=500,
            placeholder="feather:keep=0.3", lines=1,
        )  # fmt: skip
        problem = gr.HTML(elem_classes="fv-problem")

        @gr.render(inputs=text, triggers=[fresh.change, text.submit], queue=False, show_progress="hidden")
        def parameters(now: str) -> None:
            try:
                found = controls(now) if now.strip() else []
            except PruningError:
                return
            for one in found:
                _component(one, text, problem, now)

    def chosen(name: str) -> tuple[str, str, str]:
        spec = "" if name == NOTHING else first_spec(name)
        return spec, spec, ""

    def typed(now: str) -> tuple[Any, str]:
        try:
            get(now) if now.strip() else None
        except PruningError as error:
            return gr.skip(), error_html(error)
        return name_of(now), ""

    name.input(chosen, name, [text, fresh, problem], **HIDDEN)
    gr.on([text.submit, text.blur], typed, text, [name, problem], **HIDDEN)
    return Slot(name, text, problem, fresh)


def name_of(spec: str) -> str:
    """Return the name in a spec, as the list of methods has it; of joined methods the first."""
    name = split_joined(spec)[0].partition(":")[0].strip()
    return name if name in available() else NOTHING


def first_spec(name: str) -> str:
    """Return the spec that a method begins with: that of the embedded model where there is one."""
    return next((spec for spec in METHODS if spec.partition(":")[0] == name), name)


def error_html(error: object) -> str:
    """Return a sentence that says what is wrong."""
    return f'<p class="fv-error" role="alert">{escape(" ".join(str(error).split()))}</p>'


def _component(control: Control, text: gr.Textbox, problem: gr.HTML, spec: str) -> None:
    """Make the component of one parameter, which changes the spec."""
    about = {"label": control.name, "info": control.about, "key": f"{spec} {control.name}", "interactive": True}
    component: Any
    if control.kind == "switch":
        component = gr.Checkbox(control.value, **about)
        events = [component.input]
    elif control.kind == "choice":
        component = gr.Dropdown(list(control.choices), value=control.value, **about)
        events = [component.input]
    elif control.kind == "slider":
        component = gr.Slider(0.01, 1, round(control.value, 3), step=0.01, **about)
        events = [component.release]
    else:
        component = gr.Textbox(control.value, lines=1, placeholder="none", **about)
        events = [component.submit, component.blur]

    def change(now: str, value: Any) -> tuple[Any, str]:
        try:
            return changed(now, control.name, value), ""
        except PruningError as error:
            return gr.skip(), error_html(error)

    gr.on(events, change, [text, component], [text, problem], **HIDDEN)
