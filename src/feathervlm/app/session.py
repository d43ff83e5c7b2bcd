"""What the page does when something is pressed: plain values in, parts of the page by their names out."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from feathervlm.app import compare, fragments, repeat, sweep
from feathervlm.app.compare import Changed, Comparison, Step
from feathervlm.app.drawing import fitted
from feathervlm.app.jobs import Ended, Job, RunQueue, Waiting, Work, sentence
from feathervlm.app.model_cache import ModelCache
from feathervlm.app.picture_store import PictureStore, StoredPicture
from feathervlm.app.state import COLUMNS, PageState
from feathervlm.app.sweep import Sweep
from feathervlm.core.errors import PruningError

Parts = dict[str, Any]
"""Names of parts of the page and what they show."""
PREVIEW = 768
"""Longer side in pixels of the picture that the page shows before a run."""
SHOWN_FILE = re.compile(r"shown-[\w-]+\.png")
"""Names of the files of such pictures."""
SHOWN = COLUMNS + 1
"""Columns of the page, with that of the unpruned model."""


class Sessions:
    """Serves all visitors of a page.

    Args:
        models: The model that answers.
        store: The pictures.
        uploads: Directory of the files that visitors have uploaded.

    Attributes:
        queue: The line in which runs wait.
    """

    def __init__(self, models: ModelCache, store: PictureStore, uploads: Path) -> None:
        self.models, self.store, self.uploads, self.queue = models, store, uploads.resolve(), RunQueue()
        self._jobs: dict[str, Job] = {}

    def take(self, path: str | None, name: str) -> tuple[StoredPicture | None, str]:
        """Take the file of a visitor.

        Returns:
            The picture, or None; and a sentence that says what is wrong.
        """
        if path is None:
            return None, ""
        # What a browser sends is any text, and this machine has pictures that are nobody else's business.
        if not Path(path).resolve().is_relative_to(self.uploads):
            return None, "The picture was not uploaded to this page; upload it."
        try:
            return self.store.add(Path(path), name), ""
        except PruningError as error:
            return None, sentence(error)

    def preview(self, stored: StoredPicture) -> str:
        """Return the file of a picture as the page shows it, which every browser can show."""
        path = self.uploads / f"shown-{stored.key}.png"
        if not path.exists():
            self.uploads.mkdir(exist_ok=True)
            fitted(stored.picture, min(PREVIEW, max(stored.picture.size))).save(path)
        return str(path)

    def compare(self, state: PageState, visitor: str) -> Iterator[Parts]:
        """Run a comparison, and yield the parts of the page that change.

        Args:
            state: What the visitor asks for.
            visitor: Name of the visitor's session, for `stop`.
        """
        try:
            comparison = Comparison.of(state, self.store.get(state.picture))
        except PruningError as error:
            yield {"progress": _error(error)}
            return
        yield self.cleared() | {"methods": state.methods, "running": True}
        work = lambda channel: compare.run(comparison, self.models, channel)  # noqa: E731
        for events in self._events(work, visitor):
            parts = _progress(events)
            changed = [event for event in events if isinstance(event, Changed)]
            parts |= {f"answer{one.column}": fragments.answer(comparison.columns[one.column]) for one in changed}
            for at in {one.column for one in changed if one.whole}:
                parts |= self._drawn(comparison, at)
            yield parts
        # Shares of the unpruned model and of all tokens are complete at the end only.
        parts = {"comparison": comparison, "depth": comparison.depth, "running": False, "link": state.link()}
        for at, column in enumerate(comparison.columns):
            parts[f"answer{at}"] = fragments.answer(column)
        parts |= self.redraw(comparison, state.layer)
        if comparison.settings:
            parts["python"] = repeat.python_lines(comparison, self.models.spec)
            parts["commands"] = repeat.commands(comparison, self.models.spec)
            parts["code"] = fragments.code(parts["python"], parts["commands"])
        yield parts

    def sweep(self, state: PageState, visitor: str) -> Iterator[Parts]:
        """Run a sweep, see `compare`."""
        try:
            swept = Sweep.of(state, self.store.get(state.picture))
        except PruningError as error:
            yield {"progress": _error(error)}
            return
        yield {"running": True, "sweep": "", "progress": fragments.progress(text="Starting.", kind="running")}
        work = lambda channel: sweep.run(swept, self.models, channel)  # noqa: E731
        for events in self._events(work, visitor):
            yield _progress(events) | {"sweep": fragments.sweep(swept)}
        yield {"running": False, "sweep": fragments.sweep(swept), "link": replace(state, tab="sweep").link()}

    def stop(self, visitor: str) -> None:
        """Stop the run of a visitor, if there is one."""
        job = self._jobs.get(visitor)
        if job is not None:
            job.stop()

    def redraw(self, comparison: Comparison | None, layer: int) -> Parts:
        """Return pictures and numbers of all columns for another layer."""
        parts: Parts = {}
        for at in range(len(comparison.columns) if comparison is not None else 0):
            assert comparison is not None, "there are columns"
            parts |= self._drawn(comparison, at, layer)
        return parts

    def cleared(self) -> Parts:
        """Return the page without results."""
        parts: Parts = {f"{name}{at}": "" for at in range(SHOWN) for name in ("answer", "picture", "facts")}
        progress = fragments.progress(text="Starting.", kind="running")
        return parts | {"comparison": None, "python": "", "commands": "", "code": "", "progress": progress}

    def open_link(self, parameters: Iterable[tuple[str, str]]) -> tuple[PageState | None, str]:
        """Read an address.

        Returns:
            The state in it, or None; and a sentence that says what is wrong.
        """
        try:
            state = PageState.from_link(parameters)
            if state is not None and state.picture:
                self.store.get(state.picture)
        except PruningError as error:
            return None, sentence(error)
        return state, ""

    def _drawn(self, comparison: Comparison, at: int, layer: int | None = None) -> Parts:
        column, layer = comparison.columns[at], comparison.state.layer if layer is None else layer
        return {
            f"picture{at}": fragments.picture(comparison, column, layer),
            f"facts{at}": fragments.facts(comparison, column, layer),
        }

    def _events(self, work: Work, visitor: str) -> Iterator[list[Any]]:
        self.stop(visitor)
        job = self._jobs[visitor] = Job(work, self.queue)
        try:
            yield from job.events()
        finally:
            job.stop()
            if self._jobs.get(visitor) is job:
                del self._jobs[visitor]


def _progress(events: list[Any]) -> Parts:
    """Return the line that the last event asks for."""
    for event in reversed(events):
        if isinstance(event, Ended):
            text = event.error or ("The run was stopped." if event.stopped else "Done.")
            return {"progress": fragments.progress(text=text, kind="error" if event.error else "quiet")}
        if isinstance(event, Waiting):
            return {"progress": fragments.progress(text=str(event), kind="waiting")}
        if isinstance(event, Step):
            return {"progress": fragments.progress(event, kind="running")}
    return {}


def _error(error: PruningError) -> str:
    return fragments.progress(text=sentence(error), kind="error")
