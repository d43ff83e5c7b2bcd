"""The hooks of a pruned model: they guard its forwards, and begin and end each of them.

Between calls there are three hooks only: before and after the base model, and one that reads the arguments of the head.
Hooks on decoder layers exist for the length of one forward.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable, UnprunedWarning
from feathervlm.core.schedule import Schedule
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.call import EncoderOutput, ModelCall
from feathervlm.engine.compatibility import check_schedule
from feathervlm.engine.compiled import OutsideGraphs, Replaced, Uncompiled
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.forward_guard import ForwardLock, guard_generate
from feathervlm.engine.forward_runner import ForwardRunner
from feathervlm.engine.forward_state import ForwardState, ThreadState
from feathervlm.engine.full_model import FullModel, head_arguments
from feathervlm.engine.outputs import whole_outputs
from feathervlm.engine.prefill import Prefill
from feathervlm.engine.report.report import Report
from feathervlm.engine.vision.recorder import EncoderRecorder

logger = logging.getLogger(__name__)

_pruned: "WeakSet[nn.Module]" = WeakSet()


class ModelHooks:
    """The hooks of one model that prunes; they are registered when the object is made.

    Args:
        model: A transformers model.
        schedule: The stages to run.
        family: The family of the model.
        name: Name of the method, for reports.
        strict: Raise where an input cannot be pruned; otherwise warn and run unpruned.
        report: The report until a prompt has been run.
        wrappers: Modules around the model that callers may call in its place (PEFT, `torch.compile`).
        query: What the caller says about the tokens that ask; see `feathervlm.prune`.

    Attributes:
        starts: The layer of every stage, ascending.
        handles: The registered hooks; empty once they are removed, or where there is nothing to prune.
        status: Status that pruned caches depend on.
        thread: What the current thread tells the hooks.
        report: The report on the last prompt; if one `generate` runs several, on its first one with images.

    Raises:
        PruningError: If the model is being pruned already, or a stage is beyond its depth.
        Unprunable: If the model cannot be pruned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        family: Family,
        name: str,
        strict: bool,
        report: Report,
        wrappers: Sequence[nn.Module] = (),
        query: Any = None,
    ) -> None:
        self.model, self.schedule, self.family, self.name, self.strict = model, schedule, family, name, strict
        self.report, self._wrappers, self.query = report, wrappers, query
        self.status, self.thread = HookStatus(), ThreadState()
        self.handles: list[RemovableHandle | Replaced | FullModel] = []
        self._uncompiled = Uncompiled()
        self.decoder = DecoderView(model)
        self._runner = ForwardRunner(schedule, self.decoder, family, self.status)
        self.starts = self._runner.starts
        self._recorder: EncoderRecorder | None = None
        self._full: FullModel | None = None
        self._lock, self._state = ForwardLock(), ForwardState()
        check_schedule(schedule, self.decoder, family)
        if not self.starts:
            return
        try:
            self._attach()
        except Unprunable:
            self.remove()
            raise

    def _attach(self) -> None:
        if self.decoder.decoder in _pruned:
            raise PruningError(
                f"This {type(self.model).__name__} is being pruned already; leave that `with` block or call .remove()."
            )
        base = self.decoder.base
        self._names = list(inspect.signature(base.forward).parameters)
        self._uncompiled.add(*self._wrappers, self.model)
        around = self._runner.traces, self._uncompiled.add_one
        self.handles = [
            OutsideGraphs(base, *around, self._leave),
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after),
            self._uncompiled,
        ]
        self._recorder = EncoderRecorder(
            base,
            self.family,
            self.schedule,
            self._record_encoding,
            self._modality_of,
            self._refuse,
            self._encoder_enabled,
        )
        models = self.model, *self._wrappers
        self._full = FullModel(models, base, self.thread, self._recorder, self._runner.compiles_step)
        self.handles = [
            *(OutsideGraphs(model, *around, self._full.end) for model in models if model is not base),
            *self.handles,
            self._full,
        ]
        if hasattr(self.model, "generate"):
            guard_generate(self.model, self._refuse_generate, self._generating)
        _pruned.add(self.decoder.decoder)

    def remove(self) -> None:
        """Remove all hooks and wrappers from the model."""
        self._state.remove_hooks()
        self._runner.remove()
        self._state = ForwardState()
        for handle in self.handles:
            handle.remove()
        if self.handles:
            self.handles = []
            _pruned.discard(self.decoder.decoder)
            self.model.__dict__.pop("generate", None)
            if self._recorder is not None:
                self._recorder.remove()
                self._recorder = None

    def _encoder_enabled(self) -> bool:
        self._uncompiled.add(self.model)  # what was compiled since
        return not self.thread.disabled

    def _record_encoding(self, encoding: EncoderOutput, output: Any) -> None:
        """Keep a run of the encoder inside a pruned forward of this thread, and compare it with the layout."""
        call = self._state.call
        if call is not None and self._lock.held_here:
            call.encoded[encoding.modality] = output
            call.encodings.append(encoding)
            self.family.check(call, encoding.modality, output)

    def _modality_of(self, method: str, pixels: Any) -> str:
        """Return the modality of pixels that an encoder has run on, given that of the method which was called."""
        call = self._state.call
        return call.modality_of(method, pixels) if call is not None and self._lock.held_here else method

    @contextmanager
    def _generating(self, unpruned: bool) -> Iterator[None]:
        with self.thread.generate_block(), self.thread.disabled_block() if unpruned else nullcontext():
            yield

    def _refuse(self, error: Unprunable) -> None:
        self._state.refused = True
        if self.strict:
            raise error
        warnings.warn(f"feathervlm runs unpruned: {error}", UnprunedWarning, stacklevel=3)
        self._publish(Report(self.name, None, str(error)))

    def _publish(self, report: Report, images: bool = True) -> None:
        """Set the report, unless a pass with the images of the same `generate` has set it.

        Args:
            report: The report.
            images: Whether the pass brought images; guidance runs a prompt without any beside it.
        """
        if not self.thread.reported:
            self.report = report
            self.thread.reported = images and self.thread.generating > 0

    def _refuse_generate(self, error: Unprunable) -> None:
        if not self.thread.disabled:
            self._refuse(error)

    def _refuse_stage(self, error: Unprunable) -> None:
        """Refuse at a stage, unless the encoder has refused to merge before, which is then the reason."""
        call = self._state.call
        unmerged = self.schedule.encoder and call is not None and not call.encoder_runs()
        if not (unmerged and self._state.refused):
            self._refuse(error)

    def _before(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._runner.compiles_step():
            return
        self._lock.enter()
        self._state, self.thread.dropped = ForwardState(), None
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        if self.model is base:
            self.thread.head_arguments = head_arguments(arguments)
        recent = list(self._recorder.recent()) if self._recorder else []
        asked = *self.thread.head_arguments, self.query, self.thread.generating > 0
        call = ModelCall(arguments, *asked, recent)
        if self._full is not None:
            self._full.complete(call)
        if call.labels is not None and call.labels.shape != call.shape:
            call.labels = None  # of the whole prompt, not of its tokens: a classifier's
        prunes, (_, new) = not self.thread.disabled, call.shape
        try:
            if prunes and new > 1:
                source = self.family.visual_source(call)
                if source:
                    self._uncompiled.add(base)  # what was compiled since, or in a copy of the model with its hooks
                    refuse = None if self.strict else self._refuse_stage
                    self._runner.begin_prefill(self._state, call, source, refuse)
                    return
        except Unprunable as error:
            self._state = ForwardState()
            self._refuse(error)
            prunes = False
        if self._runner.begin_unpruned(self._state, call) and prunes:
            self._publish(Report(self.name, None, "there was no image in the input"), images=False)

    def _end_forward(self) -> ForwardState:
        state, self._state = self._state, ForwardState()
        state.remove_hooks()
        return state

    def _after(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._runner.compiles_step():
            return None
        state = self._end_forward()
        try:
            record = self._runner.finish(state)
        except Unprunable as error:
            self._refuse(error)
            return None
        finally:
            self._leave()  # for a copy of the model has its hooks but not its guard against graphs
        if record is not None:
            self._publish(Report(self.name, record))
            for note in record.notes:
                logger.info("%s: %s", self.name, note)
        if not isinstance(state.hooks, Prefill) or state.hooks.abandoned:
            return None
        self.thread.dropped = state.hooks.record.dropped()
        return whole_outputs(output, state.hooks)

    def _leave(self) -> None:
        """End a call of the base model, also one that an exception or an interrupt has ended."""
        if not self._lock.was_refused() and self._lock.held_here:
            self._end_forward()
            self.thread.head_arguments, self.thread.outer_arguments = (0, None), None
            self._lock.leave()
