"""Records what the vision encoder is given and what it returns, whoever runs it.

`generate` runs the encoder by itself and hands on the features, which do not tell their grids.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from feathervlm.core.errors import Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import EncoderSignal, Representatives
from feathervlm.engine.call import PIXELS, EncoderOutput
from feathervlm.engine.family import Family
from feathervlm.engine.probes.registry import probe_class
from feathervlm.engine.vision.merging import EncoderMerge
from feathervlm.engine.vision.probe import EncoderProbe


class _ThreadState(threading.local):
    """The encoder outputs that one thread still uses."""

    encodings: Sequence[EncoderOutput] = ()


class EncoderRecorder:
    """Records runs of a model's encoders for images and videos until it is removed, and merges inside them.

    Args:
        base: The model without its head.
        family: The family, which may remember something of the pixels.
        schedule: The schedule, whose signals from inside the encoder are measured and whose merging is applied.
        recorded: Callback, called with every encoding and the encoder's output.
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
        refuse: Callable[[Unprunable], None],
        enabled: Callable[[], bool],
    ) -> None:
        self.base, self.family, self.recorded, self.enabled = base, family, recorded, enabled
        self.signals: list[Any] = [signal for signal in schedule.signals() if probe_class(signal).hooks_encoder]
        self.merge = EncoderMerge(base, schedule.encoder, refuse) if schedule.encoder else None
        self._thread = _ThreadState()
        self._replaced: dict[str, Any] = {}
        for modality in PIXELS:
            original = getattr(base, f"get_{modality}_features", None)
            if original is not None:
                self._wrap(modality, f"get_{modality}_features", original)

    def recent(self) -> list[EncoderOutput]:
        """Return the encoder outputs that this thread has made and still uses."""
        return list(self._thread.encodings)

    def remove(self) -> None:
        """Remove the wrappers from the model."""
        for name, before in self._replaced.items():
            if before is None:
                self.base.__dict__.pop(name, None)
            else:
                self.base.__dict__[name] = before
        self._replaced = {}

    def _wrap(self, modality: str, name: str, original: Callable[..., Any]) -> None:
        signature = inspect.signature(original)
        own_probe = EncoderProbe(self.base, self.signals) if self.signals else None  # videos may go through images

        @functools.wraps(original)  # generate() reads the signature
        def recording(*args: Any, **kwargs: Any) -> Any:
            probe, merge = (own_probe, self.merge) if self.enabled() else (None, None)
            with probe.recording() if probe else nullcontext(), merge.active() if merge else nullcontext():
                output = original(*args, **kwargs)
            if hasattr(output, "pooler_output"):
                inputs = signature.bind(*args, **kwargs).arguments
                inside: dict[EncoderSignal, Tensor] = probe.recorded() if probe else {}
                groups = merge.representatives() if merge else None
                if groups is not None:
                    inside[Representatives()] = groups
                merged = [record for run in merge.runs for record in run.records()] if merge else []
                facts = self.family.look(modality, inputs)
                encoding = EncoderOutput.of(modality, inputs, output, facts, inside, merged)
                alive = [known for known in self._thread.encodings if known.output() is not None]
                self._thread.encodings = [*alive, encoding]
                self.recorded(encoding, output)
            return output

        self._replaced[name] = self.base.__dict__.get(name)
        self.base.__dict__[name] = recording
