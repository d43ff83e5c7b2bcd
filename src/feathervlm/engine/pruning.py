"""Attaching pruning to a model, and taking it off again without a trace.

Between calls only two hooks are on the model (one before and after the base model, one that overhears the head's
arguments). Hooks on decoder layers live as long as one forward. Knows no method and no family by name.
"""

import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import EncoderMeasure
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.cache.support import pruned_layers, restore_static
from feathervlm.engine.call import EncoderOutput, ModelCall
from feathervlm.engine.compatibility import check_call, check_schedule
from feathervlm.engine.compiled import Uncompiled
from feathervlm.engine.decode import Decode, needs_hooks
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.forward_guard import ForwardLock, guard_generate
from feathervlm.engine.prefill import Prefill
from feathervlm.engine.report.report import Report
from feathervlm.engine.reused_selection import ReusedSelection
from feathervlm.engine.scoring_pass import survivors
from feathervlm.engine.vision.merging import EncoderMerge
from feathervlm.engine.vision.recorder import EncoderRecorder

_pruned: "WeakSet[nn.Module]" = WeakSet()


class _ThreadState(threading.local):
    """What one thread's call of the model says to the hooks of its base."""

    heard: tuple[Any, Any] = (0, None)
    suspended = False


class Pruning:
    """A model that prunes: the handle that `feathervlm.prune` returns. Use it in `with`, or call `remove()`.

    Args:
        model: a transformers model.
        schedule: what to prune.
        family: that knows the model's images; None makes a handle that prunes nothing, for `reason`.
        name: of the method, for reports.
        strict: raise where the model or an input cannot be pruned; otherwise warn and run unpruned.
        reason: why nothing has been pruned, for the report before the first prompt.
        wrappers: modules around the model that callers may call in its place (PEFT, `torch.compile`).

    Raises:
        PruningError: if the model is being pruned already, or a layer is beyond its depth.
        Unprunable: if the model cannot be pruned and `strict`.
    """

    family: Family

    def __init__(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        family: Family | None,
        name: str,
        strict: bool = True,
        reason: str = "no prompt has been run yet",
        wrappers: Sequence[nn.Module] = (),
    ) -> None:
        self.model, self.schedule, self.name, self.strict = model, schedule, name, strict
        self._wrappers = wrappers
        self.attachment = HookStatus()
        self._handles: list[RemovableHandle] = []
        self._listener: EncoderRecorder | None = None
        self._forward: Prefill | Decode | None = None
        self._lasting: Decode | None = None
        self._frozen: ReusedSelection | None = None
        self._call: ModelCall | None = None
        self._turnstile = ForwardLock()
        self._own = _ThreadState()
        self._source: tuple[Tensor, ...] | None = None
        self._report = Report(name, None, reason)
        if family is None:
            return
        self.family = family
        try:
            self.decoder = DecoderView(model)
            self.starts = list(schedule.at_layers(len(self.decoder.layers)))
            check_schedule(schedule, self.decoder, self.family)
            self._attach()
        except Unprunable as error:
            self._detach()
            self._refuse(error)

    @property
    def report(self) -> Report:
        """What happened to the last prompt that brought images."""
        return self._report

    def remove(self) -> None:
        """Take everything off the model. Caches that were pruned must not be used afterwards, and say so."""
        self.attachment.alive = False
        self._detach()

    def __enter__(self) -> "Pruning":
        if not self.attachment.alive:
            raise PruningError("This pruning has been removed; call feathervlm.prune again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy's hooks would be half its own, half those of the original.
        raise PruningError("A model cannot be copied or pickled while it is being pruned; do it before or afterwards.")

    def _attach(self) -> None:
        if not self.starts:
            return
        if self.decoder.decoder in _pruned:
            raise PruningError(
                f"This {type(self.model).__name__} is being pruned already; leave that `with` block or call .remove()."
            )
        base = self.decoder.base
        self._names = list(inspect.signature(base.forward).parameters)
        self._handles = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after, always_call=True),
        ]
        # PEFT calls `forward` of the model itself, so only a hook on the wrapper sees the arguments.
        for outer in (self.model, *self._wrappers):
            if outer is not base:
                self._handles.append(outer.register_forward_pre_hook(self._overhear, with_kwargs=True))
        self._uncompiled = Uncompiled((*self._wrappers, *self.model.modules()))
        inside = [signal for signal in self.schedule.signals() if isinstance(signal, EncoderMeasure)]
        merge = EncoderMerge(base, self.schedule.encoder, self._refuse) if self.schedule.encoder else None
        self._listener = EncoderRecorder(base, self.family, inside, self._hear, merge)
        if hasattr(self.model, "generate"):
            guard_generate(self.model, self._refuse, self._generating)
        _pruned.add(self.decoder.decoder)

    def _detach(self) -> None:
        for part in (self._forward, self._lasting):
            if part is not None:
                part.remove()
        self._forward = self._lasting = self._frozen = self._call = None
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self._handles = []
            self._uncompiled.remove()
            _pruned.discard(self.decoder.decoder)
            self.model.__dict__.pop("generate", None)
            if self._listener is not None:
                self._listener.remove()
                self._listener = None

    def _hear(self, encoding: EncoderOutput, output: Any) -> None:
        """The encoder has run; if it did so inside a forward of this thread, what it made must fit the layout."""
        if self._call is not None and self._turnstile.mine:
            self._call.encoded[encoding.modality] = output
            self._call.encodings.append(encoding)
            self.family.check(self._call, encoding.modality, output)

    @contextmanager
    def _generating(self, unpruned: bool) -> Iterator[None]:
        self._own.suspended = unpruned
        try:
            yield
        finally:
            self._own.suspended = False
            if self._turnstile.mine:  # an interrupt skips the hook behind the forward
                self._end_forward()
                self._release()

    def _refuse(self, error: Unprunable) -> None:
        if self.strict:
            raise error
        warnings.warn(f"feathervlm runs unpruned: {error}", stacklevel=3)
        self._report = Report(self.name, None, str(error))

    def _abandon(self, error: Unprunable) -> None:
        """Refuse at a stage, unless that follows from what the encoder has been refused for already."""
        unmerged = self.schedule.encoder and self._call is not None and not self._call.encoder_runs()
        if not unmerged:
            self._refuse(error)

    def _overhear(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._compiled_step():
            self._own.heard = (kwargs.get("logits_to_keep", 0), kwargs.get("labels"))

    def _compiled_step(self) -> bool:
        """Whether a decoding step on a static cache is being compiled: its graph holds the lasting hooks alone."""
        return self._lasting is not None and torch.compiler.is_compiling()

    def _before(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._compiled_step():
            return
        self._turnstile.enter()
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        if self.model is base:
            self._own.heard = (arguments.get("logits_to_keep", 0), arguments.get("labels"))
        call = ModelCall(arguments, *self._own.heard, self._listener.recent() if self._listener else [])
        cache = arguments.get("past_key_values")
        new = call.shape[1]
        refused = self._own.suspended
        try:
            if new > 1 and not refused:
                source = self.family.visual_source(call)
                if source:
                    self._begin(call, source)
                    return
        except Unprunable as error:
            self._call = None
            self._refuse(error)
            refused = True
        if not pruned_layers(cache):
            if new > 1 and (cache is None or not int(cache.get_seq_length())):
                if not refused:
                    self._report = Report(self.name, None, "there was no image in the input")
                if cache is not None:
                    restore_static(cache)
        elif needs_hooks(cache, arguments.get("attention_mask"), new, self.decoder):
            if self._lasting is not None and isinstance(cache, StaticCache):
                return  # the lasting hooks do it all
            self._end_lasting()
            self._forward = Decode(self.decoder, self.starts, lasting=False).install(cache)

    def _begin(self, call: ModelCall, source: tuple[Tensor, ...]) -> None:
        check_call(call, self.schedule, self.decoder)
        if call.arguments.get("past_key_values") is not None:
            restore_static(call.arguments["past_key_values"])
        self._end_lasting()
        layout = self.family.layout(call)
        if not layout.width:
            return
        frozen = None
        if self._cacheless(call) and self._frozen is not None and self._frozen.covers(call, source):
            frozen = self._frozen
        self._call = call
        rehearsed = {} if frozen else survivors(self.schedule, call, layout, self.decoder, self.family, self.attachment)
        self._forward = Prefill(
            self.decoder,
            self.family,
            self.schedule,
            call,
            layout,
            self.attachment,
            frozen.kept if frozen else None,
            rehearsed,
            None if self.strict else self._abandon,
        ).install()
        self._source = None if frozen or not self._cacheless(call) else source

    def _end_lasting(self) -> None:
        if self._lasting is not None:
            self._lasting.remove()
            self._lasting = None

    def _cacheless(self, call: ModelCall) -> bool:
        if call.arguments.get("past_key_values") is not None:
            return False
        use = call.arguments.get("use_cache")
        return not (getattr(self.decoder.config, "use_cache", True) if use is None else use)

    def _end_forward(self) -> tuple[Prefill | Decode | None, ModelCall | None]:
        forward, call = self._forward, self._call
        self._forward = self._call = None
        if forward is not None:
            forward.remove()
        return forward, call

    def _release(self) -> None:
        self._own.heard = (0, None)
        self._turnstile.leave()

    def _after(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._compiled_step():
            return
        if self._turnstile.was_turned_away():
            return
        try:
            self._settle(output)
        finally:
            self._release()

    def _settle(self, output: Any) -> None:
        """Take the hooks away and keep what later forwards and the user need to know."""
        forward, call = self._end_forward()
        if output is None or not isinstance(forward, Prefill) or forward.abandoned or call is None:
            return
        forward.left.check()
        record = forward.record
        record.encoder = call.encoder_runs()
        refused = self.schedule.encoder and not record.encoder  # and the report says why
        if forward.given is None and not refused:
            self._report = Report(self.name, record)
        if self._source is not None:
            self._frozen = ReusedSelection(call.tokens, self._source, [stage.kept for stage in record.stages])
            self._source = None
        cache = call.arguments.get("past_key_values")
        if isinstance(cache, StaticCache):
            self._lasting = Decode(self.decoder, self.starts, lasting=True).install(cache)
