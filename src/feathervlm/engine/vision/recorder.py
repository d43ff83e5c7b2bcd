"""Hearing what the vision encoder is given and what it returns, whoever runs it.

`generate` runs the encoder by itself and hands on the features, which no longer tell their grids. Knows no layers of
the decoder and no method.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from feathervlm.core.signals import EncoderMeasure, EncoderSignal, Representatives
from feathervlm.engine.call import PIXELS, EncoderOutput
from feathervlm.engine.family import Family
from feathervlm.engine.vision.merging import EncoderMerge
from feathervlm.engine.vision.probe import EncoderProbe

Heard = Callable[[EncoderOutput, Any], None]
"""Is told of an encoding and of what the encoder returned."""


class _ThreadState(threading.local):
    """What one thread has had encoded."""

    encodings: Sequence[EncoderOutput] = ()


class EncoderRecorder:
    """Listens to the encoders of a model for images and videos until it is removed.

    Args:
        base: the model without its head.
        family: that may take something down of the pixels.
        signals: from inside the encoder that are asked for.
        heard: called after every run of an encoder.
        merge: merges inside the encoder whenever it runs; None leaves it alone.

    Raises:
        Unprunable: if a layer of the encoder cannot be looked at.
    """

    def __init__(
        self,
        base: nn.Module,
        family: Family,
        signals: Sequence[EncoderMeasure],
        heard: Heard,
        merge: EncoderMerge | None = None,
    ) -> None:
        self.base, self.family, self.heard, self.merge = base, family, heard, merge
        self.signals = signals
        self._own = _ThreadState()
        self._replaced: dict[str, Any] = {}
        for modality in PIXELS:
            original = getattr(base, f"get_{modality}_features", None)
            if original is not None:
                self._wrap(modality, f"get_{modality}_features", original)

    def recent(self) -> list[EncoderOutput]:
        """What this thread has had encoded and still uses."""
        return list(self._own.encodings)

    def remove(self) -> None:
        """Leave the model as it was."""
        for name, before in self._replaced.items():
            if before is None:
                self.base.__dict__.pop(name, None)
            else:
                self.base.__dict__[name] = before
        self._replaced = {}

    def _wrap(self, modality: str, name: str, original: Callable[..., Any]) -> None:
        signature = inspect.signature(original)
        tap = EncoderProbe(self.base, self.signals) if self.signals else None  # one each: videos may go through images

        @functools.wraps(original)  # generate() reads the signature
        def listening(*args: Any, **kwargs: Any) -> Any:
            merge = self.merge
            with tap.looking() if tap else nullcontext(), merge.merging() if merge else nullcontext():
                output = original(*args, **kwargs)
            if hasattr(output, "pooler_output"):
                given = signature.bind(*args, **kwargs).arguments
                inside: dict[EncoderSignal, Tensor] = tap.seen() if tap else {}
                groups = merge.representatives() if merge else None
                if groups is not None:
                    inside[Representatives()] = groups
                merged = [record for run in merge.runs for record in run.records()] if merge else []
                encoding = EncoderOutput.of(modality, given, output, self.family.look(modality, given), inside, merged)
                alive = [known for known in self._own.encodings if known.output() is not None]
                self._own.encodings = [*alive, encoding]
                self.heard(encoding, output)
            return output

        self._replaced[name] = self.base.__dict__.get(name)
        self.base.__dict__[name] = listening
