"""What happens while a model answers: the time to the first token, the text so far, and an end before its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from feathervlm.engine.decoder import DecoderView

Listen = Callable[[str], None]
"""Called with the text so far of the answer to one prompt."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The work was stopped from outside."""


class TokenStreamer(BaseStreamer):
    """A streamer that measures when the first new token is on the host, and passes on the text of one prompt.

    On MPS transformers streams one token late.

    Args:
        processor: Processor that decodes the tokens.
        listen: Callback for the text so far; None if nobody listens.
    """

    def __init__(self, processor: Any, listen: Listen | None = None) -> None:
        self.start, self.calls, self.seconds = time.perf_counter(), 0, 0.0
        self._processor, self._listen = processor, listen
        self._tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then one token after the other."""
        self.calls += 1
        if self.calls == 2:
            self.seconds = time.perf_counter() - self.start
        if self.calls > 1 and self._listen is not None:
            self._tokens += value.flatten().tolist()
            self._listen(self._processor.batch_decode([self._tokens], skip_special_tokens=True)[0].strip())

    def end(self) -> None:
        """Do nothing at the end of the answer."""


@contextmanager
def stoppable(model: PreTrainedModel, stop: Event) -> Iterator[None]:
    """Raise `Stopped` inside the block at the next layer of the language model once `stop` is set.

    Args:
        model: A transformers model.
        stop: Event that another thread sets.
    """

    def check(*_: Any) -> None:
        if stop.is_set():
            raise Stopped

    handles = [layer.register_forward_pre_hook(check) for layer in DecoderView(model).layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
