"""Records what the vision encoder is given and what it returns, whoever runs it.

`generate` runs the encoder by itself and hands on the features, which do not tell their grids.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import EncoderSignal, Representatives
from feathervlm.engine.call import PIXELS, EncoderOutput
from feathervlm.engine.compiled import outside_graphs, uncompiled
from feathervlm.engine.family import Family
from feathervlm.engine.probes.registry import probe_class
from feathervlm.engine.vision.merging import EncoderMerge
from feathervlm.engine.vision.probe import ENCODERS, EncoderProbe


class _ThreadState(threading.local):
    """Whether one thread is running an encoder, and what it records outside of the base model."""

    running = False
    outside: tuple[ExitStack, EncoderProbe | None, list[Any]] | None = None


class EncoderRecorder:
    """Records runs of a model's encoders for images and videos until it is removed, and merges inside them.

    Args:
        base: The model without its head.
        family: The family, which may remember something of the pixels.
        schedule: The schedule, whose signals from inside the encoder are measured and whose merging is applied.
        recorded: Callback, called with every encoding and the encoder's output.
        modality_of: Function that returns the modality of pixels, given that of the method that was called with them.
        refuse: Callback, called with the error if a run of the encoder cannot merge.
        enabled: Function that returns whether to measure and merge; if it returns False, encoders run as usual.

    Raises:
        Unprunable: If a layer of the encoder cannot be measured, or the encoder cannot merge.
    """

    def __init__(
        self,
        base: nn.Module,
        family: Family,
        schedule: Schedule,
        recorded: Callable[[EncoderOutput, Any], None],
        modality_of: Callable[[str, Any], str],
        refuse: Callable[[Unprunable], None],
        enabled: Callable[[], bool],
    ) -> None:
        self.base, self.family, self.recorded, self.enabled = base, family, recorded, enabled
        self.modality_of = modality_of
        self.signals: list[Any] = [signal for signal in schedule.signals() if probe_class(signal).hooks_encoder]
        self.merge = EncoderMerge(base, schedule.encoder, refuse) if schedule.encoder else None
        self.encoder = next((part for name in ENCODERS if (part := getattr(base, name, None)) is not None), None)
        self._encodings: list[EncoderOutput] = []
        self._lock, self._thread = threading.Lock(), _ThreadState()  # one thread may use the features of another
        self._replaced: dict[str, Any] = {}
        for modality in PIXELS:
            original = uncompiled(getattr(base, f"get_{modality}_features", None))
            if original is not None:
                self._wrap(modality, f"get_{modality}_features", original)

    def recent(self) -> list[EncoderOutput]:
        """Return the encoder outputs that are still in use."""
        return self._encodings

    def remove(self) -> None:
        """Remove the wrappers from the model."""
        self.end_outside({})
        for name, before in self._replaced.items():
            if before is None:
                self.base.__dict__.pop(name, None)
            else:
                self.base.__dict__[name] = before
        self._replaced = {}

    def begin_outside(self) -> None:
        """Begin to record the encoder, which a full model may run itself before it calls its base model."""
        self.end_outside({})
        if self.encoder is None or not self.enabled():
            return
        stack, outputs = ExitStack(), []
        probe = EncoderProbe(self.base, self.signals) if self.signals else None
        stack.enter_context(self._measured(probe, self.merge))
        handle = self.encoder.register_forward_hook(lambda module, args, output: outputs.append(output))
        stack.callback(handle.remove)
        self._thread.outside = stack, probe, outputs

    def end_outside(self, inputs: dict[str, Any]) -> tuple[EncoderOutput, Any] | None:
        """Stop recording, and return the run of the encoder and its output; None if it has not run once.

        Args:
            inputs: The images that the full model was given, by the names of the base model's arguments.
        """
        if self._thread.outside is None:
            return None
        (stack, probe, outputs), self._thread.outside = self._thread.outside, None
        stack.close()
        brought = [modality for modality, name in PIXELS.items() if inputs.get(name) is not None]
        if len(outputs) != 1 or len(brought) != 1:
            return None
        return self._encoding(brought[0], inputs, outputs[0], probe, self.merge), outputs[0]

    @contextmanager
    def _measured(self, probe: EncoderProbe | None, merge: EncoderMerge | None) -> Iterator[None]:
        """Measure and merge in a `with` block, in which other runs of the encoder are part of this one."""
        self._thread.running = True
        try:
            with probe.recording() if probe else nullcontext(), merge.active() if merge else nullcontext():
                yield
        finally:
            self._thread.running = False

    def _encoding(
        self, modality: str, inputs: dict[str, Any], output: Any, probe: EncoderProbe | None, merge: EncoderMerge | None
    ) -> EncoderOutput:
        inside: dict[EncoderSignal, Tensor] = probe.recorded() if probe else {}
        groups = merge.representatives() if merge else None
        if groups is not None:
            inside[Representatives()] = groups
        merged = [record for run in merge.runs for record in run.records()] if merge else []
        return EncoderOutput.of(modality, inputs, output, self.family.look(modality, inputs), inside, merged)

    def _wrap(self, method_modality: str, name: str, original: Callable[..., Any]) -> None:
        signature = inspect.signature(original)
        own_probe = EncoderProbe(self.base, self.signals) if self.signals else None

        @outside_graphs
        @functools.wraps(original)  # generate() reads the signature
        def recording(*args: Any, **kwargs: Any) -> Any:
            if self._thread.running:  # many models make the features of videos by their method for images
                return original(*args, **kwargs)
            probe, merge = (own_probe, self.merge) if self.enabled() else (None, None)
            with self._measured(probe, merge):
                output = original(*args, **kwargs)
            if hasattr(output, "pooler_output"):
                inputs = signature.bind(*args, **kwargs).arguments
                pixels = inputs.pop(PIXELS[method_modality], None)
                modality = self.modality_of(method_modality, pixels)
                encoding = self._encoding(modality, {**inputs, PIXELS[modality]: pixels}, output, probe, merge)
                with self._lock:
                    self._encodings = [*(known for known in self._encodings if known.alive), encoding]
                self.recorded(encoding, output)
            return output

        self._replaced[name] = self.base.__dict__.get(name)
        self.base.__dict__[name] = recording
