"""Where the signals of one pruned forward come from: hooks that take them down, and what answers a criterion.

Listens only to layers and parts that some stage asks for. Knows what is left of the sequence and neither selectors nor
how a layer's arguments are rewritten.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.criteria.attention import raters
from feathervlm.core.schedule import Stage
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import (
    Attention,
    EncoderSignal,
    Features,
    IsText,
    Keys,
    LayerSignal,
    LayerStates,
    RaterAttention,
    RotaryTable,
    Signal,
    Text,
    Values,
)
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.gather import rows
from feathervlm.engine.masks import pruned_mask
from feathervlm.engine.probes.base import RowView
from feathervlm.engine.probes.hidden_states import HiddenStateProbe
from feathervlm.engine.probes.prompt_text import PromptText
from feathervlm.engine.probes.query_key import QueryKeyProbe
from feathervlm.engine.probes.values import ValueProbe
from feathervlm.engine.rotary import rotary_rows
from feathervlm.engine.rows import RowTracker


class SignalReader:
    """The signals of one forward; see `feathervlm.core.signals.Signals`.

    Args:
        decoder: view of the decoder.
        family: that knows the features of the vision encoder.
        call: the call that is about to run.
        left: the rows that are left.
        survivors: answers to `Survivors` signals, from passes of their own.
    """

    def __init__(
        self,
        decoder: DecoderView,
        family: Family,
        call: ModelCall,
        left: RowTracker,
        survivors: dict[Survivors, Tensor],
    ) -> None:
        self.decoder, self.family, self.call, self.left, self.survivors = decoder, family, call, left, survivors
        # The places of rows before anything has left are original positions.
        self.text = PromptText(left.layout, left.valid, left.query)
        self.taps: dict[tuple[int, bool], QueryKeyProbe] = {}  # by layer, and whether the text asks
        self.states: dict[tuple[int, LayerStates], HiddenStateProbe] = {}
        self.values: dict[int, ValueProbe] = {}
        self.embedded: dict[Signal, Tensor] = {}  # (batch, visual or texts, dim), of what enters the language model

    def arm(self, signal: Signal, at: int) -> list[RemovableHandle]:
        """Hooks for what a stage before layer `at` will read.

        Raises:
            Unprunable: if the model does not give it.
        """
        source = signal.measured
        if isinstance(source, Values):
            layer, _ = self.decoder.scoring_layer(at - 1)
            if layer not in self.values:
                self.values[layer] = ValueProbe(self.decoder, layer, self.left.row)
                return self.values[layer].attach()
        elif isinstance(source, LayerSignal) and source.layer == "K-1":
            key = self._key(source, at)
            if key not in self.taps:
                self.taps[key] = self._new_tap(source, key[0])
                return self.taps[key].attach()
        elif isinstance(source, LayerStates):
            point = at - 1, source
            if point not in self.states:
                self.states[point] = HiddenStateProbe(self.decoder, at - 1, self.left.row, source)
                return self.states[point].attach()
        elif isinstance(source, Features) and source.source == "projected":

            def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if signal not in self.embedded:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    places = self.text.places if isinstance(signal, Text) else self.left.layout.positions()
                    self.embedded[signal] = rows(hidden.detach(), places, -2)

            # Ahead of the pruning hook, which may drop rows at this very layer.
            return [self.decoder.layers[0].register_forward_pre_hook(see, with_kwargs=True, prepend=True)]
        return []

    def enter(self, at: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """A stage begins.

        Args:
            at: layer that tokens leave before.
            hidden: states of the rows that are left, on their way into that layer.
            kwargs: its other arguments, for all rows.
        """
        self.at, self.entering = at, (hidden, kwargs)

    def leave(self) -> None:
        """The stage is over."""
        del self.entering

    def notes(self, stage: Stage) -> list[str]:
        """What the user should know of the layer that scored the stage that is under way."""
        found = []
        for signal in (signal.measured for signal in stage.signals()):
            if isinstance(signal, LayerSignal) and signal.layer == "K-1":
                found.append(self.decoder.scoring_layer(self.at - 1)[1])
        return [note for note in dict.fromkeys(found) if note]

    def read(self, signal: Signal) -> Tensor:
        """See `feathervlm.core.signals.Signals`."""
        if isinstance(signal, RaterAttention):
            features = Features("projected")
            words, there = self.read(Text(features)), self.text.exists(IsText(signal.text))
            rates = raters(self.read(features), self.left.geometry.exists, words, there)
            return self._tap(signal).rated(signal, rates.to(there.device), self.left.present)
        if isinstance(signal, Attention):
            return self._tap(signal).scores(signal, self.left.present)
        if isinstance(signal, Survivors):
            return self.survivors[signal]
        if isinstance(signal, IsText):
            return self.text.exists(signal)
        if isinstance(signal, LayerStates):
            states = self.states[self.at - 1, signal].states
            assert states is not None
            return states
        if isinstance(signal, EncoderSignal):
            return self.family.inside_encoder(self.call, self.left.layout, signal)
        if signal == Features("vision"):
            return self.family.vision_features(self.call, self.left.layout)
        text, source = isinstance(signal, Text), signal.measured
        if source == Features("projected"):
            return self.embedded[signal]
        if isinstance(source, RotaryTable):
            tables = self.entering[1].get("position_embeddings")
            table = rotary_rows(self.decoder, self.at, tables, source.of, self.text.start(self.call))
            return rows(self.left.tables(table), self.left.slots, -2)
        if isinstance(source, Values):
            values = self.values[self.decoder.scoring_layer(self.at - 1)[0]]
            return values.vectors(self.text.rows(values.seen.positions) if text else values.seen.slots)
        if isinstance(source, Keys):
            tap = self._tap(source)
            return tap.key_vectors(source, self.text.rows(tap.seen.positions) if text else tap.seen.slots)
        hidden = self.entering[0].detach()
        return rows(hidden, self.text.rows(self.left.positions) if text else self.left.slots, -2)

    def _key(self, signal: LayerSignal, at: int) -> tuple[int, bool]:
        """Which tap a stage before layer `at` reads."""
        return self.decoder.scoring_layer(at - 1)[0], isinstance(signal, RaterAttention)

    def _new_tap(self, signal: LayerSignal, layer: int) -> QueryKeyProbe:
        where = self._text_row if isinstance(signal, RaterAttention) else self.left.row
        return QueryKeyProbe(self.decoder, layer, where)

    def _text_row(self) -> RowView:
        """Where things are now, all text asking."""
        row = self.left.row()
        return replace(row, query=self.text.rows(row.positions))

    def _tap(self, signal: LayerSignal) -> QueryKeyProbe:
        """The tap of the layer that has run, or one of the layer that is about to."""
        hidden, kwargs = self.entering
        if signal.layer == "K-1":
            return self.taps[self._key(signal, self.at)]
        tap = self._new_tap(signal, self.at)
        mask = None
        if isinstance(signal, Attention) and signal.over == "all":  # the layer's own, still of the unpruned sequence
            place, attention = self.left.positions, self.decoder.attention
            given = kwargs.get("attention_mask")
            mask = pruned_mask(given, place, place, place, self.left.valid, 0, attention, hidden.dtype)
        tap.project(hidden, self.left.tables(kwargs.get("position_embeddings")), mask)
        return tap
