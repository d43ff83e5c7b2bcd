"""Feature vectors: of the vision encoder, of the embeddings that enter the language model, and of hidden states."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.signals import Features
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.probes.base import LayerRecorder, Probe
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.row_view import RowView


class EmbeddingRecorder(LayerRecorder):
    """Records the embeddings that enter the first decoder layer.

    Args:
        decoder: View of the decoder.
        view: Function that returns where the tokens are when the layer runs.
        rows: Function from that to the rows to record, long (batch, tokens).
    """

    def __init__(self, decoder: DecoderView, view: Callable[[], RowView], rows: Callable[[RowView], Tensor]) -> None:
        super().__init__(decoder, 0, view)
        self.rows = rows
        self.embeddings: Tensor | None = None  # (batch, tokens, dim)

    def attach(self) -> list[RemovableHandle]:
        # Before the pruning hook, which may drop rows at this very layer.
        return [self.decoder.layers[0].register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        view = self.view()
        self.embeddings = view.take(hidden.detach(), self.rows(view))


@measures(Features)
class FeaturesProbe(Probe[Features]):
    """Measures feature vectors."""

    def attach(self) -> list[RemovableHandle]:
        if self.signal.source != "projected":
            return []
        forward, tokens = self.forward, self.tokens
        return forward.attach(
            self._key,
            lambda: EmbeddingRecorder(
                forward.decoder, forward.rows.view, lambda view: forward.token_rows(tokens, view)
            ),
        )

    @property
    def _key(self) -> tuple[str, str]:
        return "embeddings", self.tokens

    def read(self) -> Tensor:
        forward = self.forward
        if self.signal.source == "vision":
            return forward.turns.split(forward.family.vision_features(forward.call, forward.rows.layout))
        if self.signal.source == "projected":
            recorder: EmbeddingRecorder = forward.recorders[self._key]
            return recorder.found(recorder.embeddings)
        (hidden, _), view = forward.stage_inputs, forward.rows.view()
        return view.take(hidden.detach(), forward.token_rows(self.tokens, view))
