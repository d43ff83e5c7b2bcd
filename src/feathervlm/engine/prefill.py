"""One pruned forward: hooks that live exactly as long as the call that they prune.

At each stage's layer the surviving rows are gathered once; from there on every layer gets arguments for those rows
alone; after the last layer they return to their places, so the caller sees tensors of the original length. Everything
outside a pruned layer is in original coordinates.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.run_stage import run_stage
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import Attention
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.cache.support import pruned_layers, restore_static
from feathervlm.engine.cache.trim_earlier import EarlierLayers
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decode import Decode
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.gather import rows
from feathervlm.engine.layer_inputs import LayerArguments
from feathervlm.engine.probes.reader import SignalReader
from feathervlm.engine.query_position import check_labels, query_position
from feathervlm.engine.report.records import Record, StageRecord, Stopwatch
from feathervlm.engine.rows import RowTracker


class Prefill:
    """The state of one pruned forward.

    Args:
        decoder: view of the decoder.
        family: that knows the layout and the features.
        schedule: what to prune.
        call: the call that is about to run.
        layout: of its visual tokens, on the input's device.
        attachment: what the pruned cache will depend on.
        given: for each stage the tokens to keep, bool (batch, visual), instead of asking its selector.
        survivors: answers to `Survivors` signals, from passes of their own.
        refuse: told why, instead of an exception, if the first stage finds that it cannot prune after all.
    """

    def __init__(
        self,
        decoder: DecoderView,
        family: Family,
        schedule: Schedule,
        call: ModelCall,
        layout: VisualLayout,
        attachment: HookStatus,
        given: Sequence[Tensor] | None = None,
        survivors: dict[Survivors, Tensor] | None = None,
        refuse: Callable[[Unprunable], None] | None = None,
    ) -> None:
        self.decoder, self.family, self.call, self.layout = decoder, family, call, layout
        self.attachment, self.given, self.refuse = attachment, given, refuse
        self.stages = dict(zip(schedule.at_layers(len(decoder.layers)), schedule.stages, strict=True))
        self.starts = sorted(self.stages)
        self.batch, self.sequence = call.shape
        device = layout.mask.device
        mask: Any = call.arguments.get("attention_mask")
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        self.attended = mask[:, -self.sequence :].to(device).bool() if padded else None
        query = query_position(call, layout, self.attended)
        self.left = RowTracker(layout, self.attended, query)
        self.sources = SignalReader(decoder, family, call, self.left, survivors or {})
        self.stage = -1
        self.stored = [self.sequence]  # rows whose keys the layers before each stage have
        self.full: Tensor | None = None  # hidden states of all rows, where those that are left have their places
        self.arguments = LayerArguments(decoder, family, self.left, attachment)
        self.handles: list[RemovableHandle] = []
        self.abandoned = False
        self.unpruned = Decode(decoder, self.starts, lasting=False)  # for what earlier turns pruned, once abandoned
        cache = call.arguments.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.record = Record(layout, self.attended, self.sequence, decoder.costs, self.past)
        self.record.notes += family.notes
        check_labels(call, layout)
        if survivors:
            self.record.notes.append("the scoring pass that chose the tokens comes on top of these figures")
        if self.past:
            self._check_first_prompt_only()
            held = next((layer for at, layer in pruned_layers(cache).items() if at < self.starts[0]), None)
            if held is not None:
                columns, valid = held.columns(0, device)
                self.record.before = columns.shape[1], valid

    def install(self) -> "Prefill":
        """Put the hooks in place.

        Raises:
            Unprunable: if a stage asks for a signal that the model does not give.
        """
        layers, cache = self.decoder.layers, self.call.arguments.get("past_key_values")
        try:
            for index in pruned_layers(cache):
                if index < self.starts[0]:  # cut in an earlier turn: all of this input runs on what it left
                    hook = partial(self.unpruned.enter, index, 0)
                    self.handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            for index in range(self.starts[0], len(layers)):
                self.handles.append(
                    layers[index].register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
                )
            for at, stage in self.stages.items():
                for signal in stage.signals():
                    self.handles += self.sources.arm(signal, at)
            for index in [*range(self.starts[0], min(self.family.injected + 1, len(layers) - 1)), len(layers) - 1]:
                self.handles.append(layers[index].register_forward_hook(self._restore))
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _check_first_prompt_only(self) -> None:
        if any(stage.positions == "renumber" for stage in self.stages.values()):
            raise Unprunable("positions='renumber' works on the first prompt of a conversation only.")
        signals = [signal for stage in self.stages.values() for signal in stage.signals()]
        if any(isinstance(signal, Attention) and signal.over == "all" for signal in signals):
            raise Unprunable("over='all' needs the keys of earlier turns, which are cached rotated; use over='visual'.")

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.abandoned:
            return self.unpruned.enter(index, bisect_right(self.starts, index), module, args, kwargs)
        try:
            if index == self.starts[0] or index - 1 <= self.family.injected:
                self.full = hidden  # all rows: nothing has left yet, or they are back to have something added
                if index > self.starts[0]:
                    hidden = rows(hidden, self.left.positions, -2)
            if index in self.stages:
                hidden = self._prune(index, self.stages[index], hidden, kwargs)
            kwargs = self.arguments.rewrite(index, kwargs, hidden.dtype)
            if index in self.stages:
                self.record.stages[-1].past = self.arguments.earlier
                self._cut_earlier(index, kwargs.get("past_key_values"))
        except Unprunable as error:
            if self.refuse is None or index > self.starts[0]:
                raise
            self.abandoned = True
            self.refuse(error)
            if kwargs.get("past_key_values") is not None:
                restore_static(kwargs["past_key_values"])
            return self._enter(index, module, args, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.abandoned:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        assert self.full is not None
        index = self.left.positions.to(hidden.device)
        full = self.full
        if self.left.valid is not None:
            # Fillers go to a row that is cut off again. Padding has run through all layers as it would have.
            real = self.left.valid
            if self.attended is not None:
                real = real | ~self.attended.gather(1, self.left.positions)
            full = torch.nn.functional.pad(full, (0, 0, 0, 1))
            index = torch.where(real.to(hidden.device), index, self.sequence)
        if len(index) == 1 and full.dim() == 3:
            full = full.index_copy(1, index[0], hidden)  # moves whole rows
        else:
            full = full.scatter(-2, index[..., None].expand(*index.shape, hidden.shape[-1]), hidden)
        full = full[..., : self.sequence, :]
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _prune(self, index: int, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self.stage += 1
        self.sources.enter(index, hidden, kwargs)
        with torch.no_grad():
            watch = Stopwatch(hidden.device)
            tokens = Candidates(self.left.geometry, self.left.present, self.sources)
            result = run_stage(stage, tokens, None if self.given is None else self.given[self.stage])
        chosen, groups, scores = result.kept, result.groups, result.scores
        merged = None
        if stage.merge is not None and groups is not None:
            merged = stage.merge.combine(rows(hidden, self.left.slots, -2), groups, tokens)
        with torch.no_grad():
            order = self.left.drop(stage, chosen, plan=self.given is None)
            if self.refuse is not None:
                self.left.check()  # while there is still time to run unpruned
        left = rows(hidden, order, -2)
        if merged is not None:
            # Tokens that are gone go to a row that is cut off again.
            place = torch.where(self.left.present, self.left.slots, left.shape[1]).to(left.device)
            longer = torch.nn.functional.pad(left, (0, 0, 0, 1))
            left = longer.scatter(1, place[..., None].expand_as(merged), merged)[:, :-1]
        self.record.stages.append(
            StageRecord(index, tokens.present, chosen, scores, groups, watch.stop(), cut=stage.cache == "all")
        )
        self.record.notes += [note for note in self.sources.notes(stage) if note not in self.record.notes]
        self.sources.leave()
        self.arguments.next_stage()
        return left

    def _cut_earlier(self, at: int, cache: Any) -> None:
        """Let the layers before a stage forget what has left, too, where the stage asks for that."""
        count = self.left.positions.shape[1]
        if self.stages[at].cache == "all":
            if cache is None:
                self.record.notes.append(f"nothing is cached, so layers before {at} see all tokens again at every step")
            else:
                earlier = EarlierLayers(cache, self.left, self.past, self.attachment)
                for index in filter(self.decoder.keeps_keys, range(at)):
                    stage = bisect_right(self.starts, index)
                    earlier.cut(index, self.stored[stage], (stage, self.decoder.layer_types[index]))
            self.stored = [count] * len(self.stored)
        self.stored.append(count)
