"""Vectors of the text tokens of the prompt, and which of them exist."""

from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from feathervlm.core.signals import IsText, Text
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.probes.base import Probe
from feathervlm.engine.probes.registry import measures, probe_class


@measures(Text)
class TextProbe(Probe[Text]):
    """Measures what the probe of visual tokens measures, for text tokens."""

    @classmethod
    def check(cls, signal: Text, decoder: DecoderView, family: Family, at: int) -> None:
        probe_class(signal.of).check(signal.of, decoder, family, at)

    @classmethod
    def check_later_turn(cls, signal: Text) -> None:
        probe_class(signal.of).check_later_turn(signal.of)

    @property
    def _probe(self) -> Probe[Any]:
        return self.forward.probe(self.signal.of, self.at, "text")

    def attach(self) -> list[RemovableHandle]:
        return self._probe.attach()

    @property
    def note(self) -> str | None:
        return self._probe.note

    def read(self) -> Tensor:
        return self._probe.read()


@measures(IsText)
class IsTextProbe(Probe[IsText]):
    """Measures which text tokens exist."""

    def read(self) -> Tensor:
        return self.forward.text.exists(self.signal)
