"""What happens when something on the page is pressed: the session's parts go to the components of the page."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from feathervlm.app import fragments
from feathervlm.app.compare import Comparison
from feathervlm.app.picture_store import EXAMPLES, StoredPicture
from feathervlm.app.session import SHOWN, SHOWN_FILE, Parts, Sessions
from feathervlm.app.slots import HIDDEN, Slot, name_of
from feathervlm.app.state import COLUMNS, PageState, check_methods
from feathervlm.core.errors import PruningError

SHOW_LINK = "(query) => { if (query) history.replaceState(null, '', query); }"


class Wiring:
    """Connects the components of the page.

    Args:
        sessions: What serves the visitors.
        parts: Components by name.
        slots: The methods side by side.
        sweep_slot: The method of the sweep.
        tabs: The tabs.
    """

    def __init__(
        self, sessions: Sessions, parts: dict[str, Any], slots: list[Slot], sweep_slot: Slot, tabs: gr.Tabs
    ) -> None:
        self.sessions, self.parts, self.slots, self.sweep_slot, self.tabs = sessions, parts, slots, sweep_slot, tabs
        asked = ("model", "key", "question", "layer", "tokens", "rounds", "maps")
        self.inputs = [*(parts[name] for name in asked), sweep_slot.spec, *(one.spec for one in slots)]
        self.count = gr.State(sum(bool(one.spec.value) for one in slots))
        self.again = gr.State("")

    def connect(self, page: gr.Blocks) -> None:
        """Connect everything."""
        parts = self.parts
        run = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        outputs = self._outputs()
        pressed = gr.on([parts["run"].click, parts["question"].submit], self.compare, self.inputs, outputs, **run)
        pressed.then(None, parts["link"], None, js=SHOW_LINK)
        swept = parts["sweep_run"].click(self.sweep, self.inputs, outputs, **run)
        swept.then(None, parts["link"], None, js=SHOW_LINK)
        for name in ("stop", "sweep_stop"):
            parts[name].click(self.stop, None, None, **HIDDEN)
        page.unload(self.stop)
        drawn = [parts[f"{name}{at}"] for at in range(SHOWN) for name in ("picture", "facts")]
        parts["layer"].change(self.redraw, [parts["comparison"], parts["layer"]], drawn, **HIDDEN)
        parts["more"].click(self.more, self.count, [self.count, *self._columns()], **HIDDEN)
        picture = [parts["picture"], parts["key"], parts["progress"]]
        # Without gradio's own decoding, which is not that of `open_picture`.
        parts["picture"].input(self.take, parts["picture"], picture, preprocess=False, **HIDDEN)
        parts["picture"].clear(self.clear, None, picture[:2], **HIDDEN)
        parts["examples"].select(self.example, None, [*picture, parts["question"]], **HIDDEN)
        opened = page.load(self.open, None, self._opened(), show_progress="hidden", api_visibility="private")
        again = opened.then(self.repeat, [self.again, *self.inputs], outputs, **run)
        again.then(None, parts["link"], None, js=SHOW_LINK)

    def compare(self, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        """Run a comparison."""
        yield from self._run("compare", values, request)

    def sweep(self, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        """Run a sweep."""
        yield from self._run("sweep", values, request)

    def repeat(self, request: gr.Request, tab: str, *values: Any) -> Iterator[dict[Any, Any]]:
        """Run what the link of the page was made from."""
        if tab:
            yield from self._run(tab, values, request)
        else:
            yield {self.again: ""}

    def stop(self, request: gr.Request) -> None:
        """Stop the run of the visitor."""
        self.sessions.stop(request.session_hash or "")

    def redraw(self, comparison: Comparison | None, layer: int) -> Any:
        """Show another layer."""
        return self._updates(self.sessions.redraw(comparison, int(layer))) or gr.skip()

    def more(self, count: int) -> list[Any]:
        """Show one more method."""
        count = min(count + 1, COLUMNS)
        return [count, *(gr.update(visible=at <= count) for at in range(SHOWN))]

    def take(self, file: dict[str, Any] | None) -> dict[Any, Any]:
        """Take the picture of the visitor."""
        # gradio passes the picture of the page on, too, when it is removed.
        if file is None or SHOWN_FILE.fullmatch(file.get("orig_name") or ""):
            return {self.parts["progress"]: gr.skip()}
        stored, problem = self.sessions.take(file.get("path"), file.get("orig_name") or "")
        return self._picture(stored, problem)

    def clear(self) -> dict[Any, Any]:
        """Forget the picture of the visitor."""
        return {self.parts["picture"]: None, self.parts["key"]: ""}

    def example(self, event: gr.SelectData) -> dict[Any, Any]:
        """Take an example with its question."""
        stored = self.sessions.store.get(EXAMPLES[event.index])
        question = stored.question.text if stored.question else ""
        return self._picture(stored, "") | {self.parts["question"]: question}

    def open(self, request: gr.Request) -> dict[Any, Any]:
        """Show what the address of the page holds."""
        state, problem = self.sessions.open_link(request.query_params.multi_items())
        if state is None:
            shown = fragments.progress(text=problem or "Ready.", kind="error" if problem else "quiet")
            fresh = {one.fresh: str(one.spec.value) for one in (*self.slots, self.sweep_slot)}  # makes their controls
            return fresh | {self.parts["progress"]: shown, self.again: ""}
        parts = self.parts
        updates = self._methods(state.methods) | {self.again: state.tab, self.tabs: gr.Tabs(selected=state.tab)}
        updates |= {parts[name]: getattr(state, name) for name in ("model", "question", "tokens", "rounds", "maps")}
        updates[parts["layer"]] = gr.update(value=state.layer, maximum=max(state.layer, 15))
        updates |= self._slot(self.sweep_slot, state.sweep)
        if state.picture:
            updates |= self._picture(self.sessions.store.get(state.picture), "")
        return updates

    def _run(self, tab: str, values: tuple[Any, ...], request: gr.Request) -> Iterator[dict[Any, Any]]:
        try:
            state = self._state(values, tab)
        except PruningError as error:
            yield {self.parts["progress"]: fragments.progress(text=str(error), kind="error")}
            return
        for parts in getattr(self.sessions, tab)(state, request.session_hash or ""):
            yield self._updates(parts)

    def _state(self, values: tuple[Any, ...], tab: str) -> PageState:
        model, key, question, layer, tokens, rounds, maps, sweep, *specs = values
        return PageState(
            model.strip(), key, question, check_methods(specs), sweep, int(layer), int(tokens), int(rounds), maps, tab
        )

    def _updates(self, parts: Parts) -> dict[Any, Any]:
        """Return the components that show the parts of a session."""
        updates: dict[Any, Any] = {}
        for name, value in parts.items():
            if name == "running":
                for button, active in (("run", not value), ("sweep_run", not value), ("stop", value)):
                    updates[self.parts[button]] = gr.update(interactive=active)
                updates[self.parts["sweep_stop"]] = gr.update(interactive=value)
            elif name == "methods":
                updates |= self._methods(value)
            elif name == "depth":
                if value:
                    updates[self.parts["layer"]] = gr.update(maximum=value - 1)
            else:
                updates[self.parts[name]] = value
        return updates

    def _methods(self, specs: tuple[str, ...]) -> dict[Any, Any]:
        """Show these methods from the left, and no empty ones."""
        updates: dict[Any, Any] = {self.count: len(specs)}
        for at, one in enumerate(self.slots):
            updates |= self._slot(one, specs[at] if at < len(specs) else "")
        return updates | {column: gr.update(visible=at <= len(specs)) for at, column in enumerate(self._columns())}

    def _slot(self, one: Slot, spec: str) -> dict[Any, Any]:
        return {one.name: name_of(spec), one.spec: spec, one.problem: "", one.fresh: spec}

    def _picture(self, stored: StoredPicture | None, problem: str) -> dict[Any, Any]:
        progress = fragments.progress(text=problem, kind="error" if problem else "quiet")
        shown = None if stored is None else self.sessions.preview(stored)
        key = "" if stored is None else stored.key
        return {self.parts["picture"]: shown, self.parts["key"]: key, self.parts["progress"]: progress}

    def _columns(self) -> list[gr.Column]:
        return [self.parts[f"column{at}"] for at in range(SHOWN)]

    def _outputs(self) -> list[Any]:
        shown = [self.parts[f"{name}{at}"] for at in range(SHOWN) for name in ("answer", "picture", "facts")]
        others = (
            "progress", "comparison", "layer", "run", "stop", "sweep_run", "sweep_stop", "sweep", "python",
            "commands", "link", "code",
        )  # fmt: skip
        return [*shown, *(self.parts[name] for name in others), self.again, *self._slots()]

    def _opened(self) -> list[Any]:
        names = ("picture", "key", "progress", "model", "question", "layer", "tokens", "rounds", "maps")
        sweep = self.sweep_slot
        slots = [*self._slots(), *vars(sweep).values()]
        return [*(self.parts[name] for name in names), self.again, self.tabs, *slots]

    def _slots(self) -> list[Any]:
        slots = [part for one in self.slots for part in vars(one).values()]
        return [self.count, *self._columns(), *slots]
