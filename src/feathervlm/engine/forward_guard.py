"""Guards of a pruned model: one forward at a time, and no chunked prefill.

A pruned forward keeps its state on the model until it ends, so a second one, from another thread or from inside the
first, must not begin.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable


class _ThreadState(threading.local):
    refused = False


class ForwardLock:
    """Lets one forward of a model run at a time."""

    def __init__(self) -> None:
        self._running = threading.Lock()  # held from before a forward until after it
        self._owner: int | None = None
        self._thread = _ThreadState()

    @property
    def held_here(self) -> bool:
        """Whether the forward that is running belongs to this thread."""
        return self._owner == threading.get_ident()

    def enter(self) -> None:
        """Begin a forward.

        Raises:
            PruningError: If another one is running.
        """
        if self._running.acquire(blocking=False):
            self._owner = threading.get_ident()
            return
        self._thread.refused = True
        if not self.held_here:
            raise PruningError(
                "A pruned model runs one forward at a time, and another thread is in one; use one copy per thread."
            )
        raise PruningError(
            "A pruned model runs one forward at a time, and this one is in one; if that was interrupted, call "
            ".remove() and prune again."
        )

    def was_refused(self) -> bool:
        """Return whether the forward of this thread that ends now was refused by `enter`."""
        refused, self._thread.refused = self._thread.refused, False
        return refused

    def leave(self) -> None:
        """End the forward."""
        self._owner = None
        if self._running.locked():
            self._running.release()


def guard_generate(
    model: PreTrainedModel, refuse: Callable[[Unprunable], None], around: Callable[[bool], AbstractContextManager[None]]
) -> None:
    """Wrap `model.generate`, for only there chunked prefill can be recognized: its forwards look like short prompts.

    Args:
        model: The model, whose instance gets the wrapper; remove it with `del model.generate`.
        refuse: Callback, called with the error if chunked prefill is requested.
        around: Function that returns the context of every call, given whether that call must run unpruned.
    """
    original: Any = model.generate

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        config = inspect.signature(original).bind_partial(*args, **kwargs).arguments.get("generation_config")
        config = config if config is not None else model.generation_config
        chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if chunk is not None:
            refuse(
                Unprunable(
                    f"prefill_chunk_size={chunk} would let each chunk prune by its own last token; leave it unset."
                )
            )
        with around(chunk is not None):
            return original(*args, **kwargs)

    model.__dict__["generate"] = guarded
