"""The handle of a pruned model: attaches pruning to it, disables it, and removes it without a trace."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable, UnprunedWarning
from feathervlm.core.schedule import Schedule
from feathervlm.engine.family import Family
from feathervlm.engine.model_hooks import ModelHooks
from feathervlm.engine.report.report import Report

logger = logging.getLogger(__name__)


class Pruning:
    """A handle of a model that prunes, as `feathervlm.prune` returns it. Use it in `with`, or call `remove()`.

    Args:
        model: A transformers model.
        schedule: The stages to run.
        family: The family of the model; None makes a handle that prunes nothing.
        name: Name of the method, for reports.
        strict: Raise where the model or an input cannot be pruned; otherwise warn and run unpruned.
        reason: Why nothing has been pruned yet.
        wrappers: Modules around the model that callers may call in its place (PEFT, `torch.compile`).
        query: What the caller says about the tokens that ask; see `feathervlm.prune`.

    Raises:
        PruningError: If the model is being pruned already, or a stage is beyond its depth.
        Unprunable: If the model cannot be pruned and `strict`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        family: Family | None,
        name: str,
        strict: bool = True,
        reason: str = "no prompt has been run yet",
        wrappers: Sequence[nn.Module] = (),
        query: Any = None,
    ) -> None:
        self.model, self.schedule, self.name = model, schedule, name
        self._hooks: ModelHooks | None = None
        self._report, self._removed = Report(name, None, reason), False
        if family is None:
            return
        self.family = family
        try:
            self._hooks = ModelHooks(model, schedule, family, name, strict, self._report, wrappers, query)
            self.decoder = self._hooks.decoder
        except Unprunable as error:
            if strict:
                raise
            warnings.warn(f"feathervlm runs unpruned: {error}", UnprunedWarning, stacklevel=3)
            self._report = Report(name, None, str(error))
        logger.info("Attached %r.", self)

    @property
    def query(self) -> Any:
        """The position of the token that asks in the next prompts, as `feathervlm.prune` takes it; can be set."""
        return self._hooks.query if self._hooks else None

    @query.setter
    def query(self, query: Any) -> None:
        if self._hooks:
            self._hooks.query = query

    @property
    def report(self) -> Report:
        """The report on the last prompt; if one `generate` runs several, on its first one with images."""
        return self._hooks.report if self._hooks else self._report

    def remove(self) -> None:
        """Remove pruning from the model. Caches that were pruned refuse to be used afterwards."""
        self._removed = True
        if self._hooks:
            self._hooks.status.alive = False
            self._hooks.remove()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run unpruned inside a `with` block.

        New prompts run as on the model without pruning, its vision encoder included, and the report stays as it is. A
        cache that was pruned before the block stays pruned and can be continued. The block holds for the current
        thread; blocks can be nested.

        >>> with pruning.disabled():  # doctest: +SKIP
        ...     reference = model.generate(**inputs)
        """
        with self._hooks.thread.disabled_block() if self._hooks else nullcontext():
            yield

    def __repr__(self) -> str:
        if self._removed:
            state = "removed"
        elif self._hooks is None or not self._hooks.handles:
            state = "nothing to prune"
        else:
            state = "disabled" if self._hooks.thread.disabled else "active"
        layers = f"layers={self._hooks.starts}, " if self._hooks else ""
        return f"Pruning({self.name!r}, {type(self.model).__name__}, {layers}{state})"

    def __enter__(self) -> "Pruning":
        if self._removed:
            raise PruningError("This pruning has been removed; call feathervlm.prune again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
