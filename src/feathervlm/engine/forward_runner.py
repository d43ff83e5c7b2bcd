"""Begins and finishes the forwards of a pruned model, and keeps what holds from one to the next."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.schedule import Schedule
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.cache.support import pruned_layers, restore_static
from feathervlm.engine.call import PIXELS, ModelCall
from feathervlm.engine.compatibility import check_call
from feathervlm.engine.decode import Decode, needs_hooks
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.forward_state import ForwardState
from feathervlm.engine.prefill import Prefill
from feathervlm.engine.query_position import text_follows
from feathervlm.engine.report.records import Record
from feathervlm.engine.reused_selection import ReusedSelection
from feathervlm.engine.scoring_pass import score, survivors


class ForwardRunner:
    """Registers the hooks on decoder layers that a forward needs.

    Args:
        schedule: The stages to run.
        decoder: View of the decoder.
        family: Family of the model.
        status: Status that pruned caches depend on.
    """

    def __init__(self, schedule: Schedule, decoder: DecoderView, family: Family, status: HookStatus) -> None:
        self.schedule, self.decoder, self.family, self.status = schedule, decoder, family, status
        self.starts = list(schedule.at_layers(len(decoder.layers)))
        self._lasting: Decode | None = None  # hooks that stay, for decoding on a static cache
        self._reused: ReusedSelection | None = None

    def compiles_step(self) -> bool:
        """Return whether a decoding step on a static cache is being compiled, with the lasting hooks in its graph."""
        return self._lasting is not None and torch.compiler.is_compiling()

    def traces(self, arguments: dict[str, Any]) -> bool:
        """Return whether a call that is being compiled is such a step; any other runs outside the graph.

        Args:
            arguments: Arguments of the call, by name.
        """
        brings_images = any(arguments.get(name) is not None for name in PIXELS.values())
        brings_images = brings_images or bool(arguments.get("mm_encoder_outputs"))
        return self._lasting is not None and not brings_images and arguments.get("past_key_values") is not None

    def begin_prefill(
        self,
        state: ForwardState,
        call: ModelCall,
        source: tuple[Tensor, ...],
        refuse: Callable[[Unprunable], None] | None,
    ) -> None:
        """Begin a forward that brings images.

        Args:
            state: State of the forward, to be filled.
            call: The call.
            source: The tensors that the images come in.
            refuse: Callback, called with the error in place of raising it, if the first stage cannot prune.

        Raises:
            Unprunable: If the call cannot be pruned.
        """
        check_call(call, self.schedule, self.decoder)
        if call.arguments.get("past_key_values") is not None:
            restore_static(call.arguments["past_key_values"])
        self._remove_lasting()
        layout = self.family.layout(call)
        if not layout.width:
            return
        cached = call.caches(self.decoder.config)
        reused = self._reused if not cached and self._reused and self._reused.covers(call, source) else None
        state.call = call
        model = self.decoder, self.family, self.status
        scored = {} if reused else survivors(self.schedule, call, layout, *model)
        kept = reused.kept if reused else None
        prefill = Prefill(self.decoder, self.family, self.schedule, call, layout, self.status, kept, scored, refuse)
        cut = [at for at, stage in zip(self.starts, self.schedule, strict=True) if stage.cache == "all"]
        if cut and text_follows(call, prefill.rows.turns, prefill.attended):
            if prefill.reused is None:
                prefill.reused = self._kept_turn_by_turn(prefill, max(cut))
            prefill.hide_earlier(max(cut), prefill.reused)
        state.hooks = prefill.install()
        state.repeated = reused is not None
        state.source = None if reused or cached else source

    def _kept_turn_by_turn(self, prefill: Prefill, cut: int) -> list[Tensor]:
        """Return what each stage keeps, bool (batch, visual), if later turns do not see what earlier ones dropped.

        Args:
            prefill: The forward.
            cut: The layer of the last stage that cuts the cache of the layers before it.
        """
        call, layout, hidden = prefill.call, prefill.layout, None
        for _ in range(prefill.rows.turns.depth):  # each pass finds one more turn's tokens
            record = score(self.schedule, call, layout, self.decoder, self.family, self.status, hidden)
            hidden = cut, [stage.kept for stage in record.stages]
            prefill.record.scoring.append(record)
        assert hidden is not None
        return hidden[1]

    def begin_unpruned(self, state: ForwardState, call: ModelCall) -> bool:
        """Begin a forward that prunes nothing, and return whether it is a prompt on an empty cache.

        Args:
            state: State of the forward, to be filled.
            call: The call.
        """
        cache, new = call.arguments.get("past_key_values"), call.shape[1]
        if not pruned_layers(cache):
            prompt = new > 1 and (cache is None or not int(cache.get_seq_length()))
            if prompt and cache is not None:
                restore_static(cache)
            return prompt
        if needs_hooks(cache, call.arguments.get("attention_mask"), new, self.decoder):
            if self._lasting is not None and isinstance(cache, StaticCache):
                return False  # the lasting hooks suffice
            self._remove_lasting()
            state.hooks = Decode(self.decoder, self.starts, lasting=False).install(cache)
        return False

    def finish(self, state: ForwardState) -> Record | None:
        """Keep what later forwards need of a finished one, and return its record if the report is to tell of it.

        Raises:
            Unprunable: For a problem that the stages did not wait to read from the device, or if nothing was pruned.
            PruningError: If only a part of the pruning has happened.
        """
        prefill, call = state.hooks, state.call
        if not isinstance(prefill, Prefill) or prefill.abandoned or call is None:
            return None
        prefill.check_ran()
        prefill.rows.check()
        record = prefill.record
        record.encoder = call.encoder_runs()
        if state.source is not None:
            self._reused = ReusedSelection(call.tokens, state.source, [stage.kept for stage in record.stages])
        cache = call.arguments.get("past_key_values")
        if isinstance(cache, StaticCache):
            self._lasting = Decode(self.decoder, self.starts, lasting=True).install(cache)
        if self.schedule.encoder and not record.encoder:
            if state.refused:
                return None  # the report tells why
            raise PruningError(
                f"The vision encoder of {type(self.decoder.model).__name__} ran without its get_image_features, so "
                "nothing merged inside it; undo what replaces that method."
            )
        return None if state.repeated else record

    def remove(self) -> None:
        """Remove the lasting hooks and drop the reused selection."""
        self._remove_lasting()
        self._reused = None

    def _remove_lasting(self) -> None:
        if self._lasting is not None:
            self._lasting.remove()
            self._lasting = None
