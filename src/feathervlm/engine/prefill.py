"""One pruned prefill: hooks on decoder layers that exist for the length of the call that they prune.

At the layer of each stage the rows that stay are gathered once, every later layer gets arguments for those rows alone,
and after the last layer the rows return to their places, so that the caller sees tensors of the original length.
Everything outside a pruned layer is in original coordinates.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.core.run_stage import run_stage
from feathervlm.core.schedule import Schedule
from feathervlm.core.scoring_pass import Survivors
from feathervlm.engine.apart import JoinedCache, keys_and_values
from feathervlm.engine.cache.hide_earlier import HiddenEarlier
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.cache.support import pruned_layers, restore_static
from feathervlm.engine.cache.trim_earlier import EarlierLayers
from feathervlm.engine.call import ModelCall
from feathervlm.engine.compatibility import check_later_turn
from feathervlm.engine.decode import Decode
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.gather import gather_rows
from feathervlm.engine.halves import skip_half
from feathervlm.engine.layer_inputs import LayerArguments
from feathervlm.engine.packing import attended_of
from feathervlm.engine.probes.reader import SignalReader
from feathervlm.engine.query_position import check_labels, find_turns
from feathervlm.engine.report.records import Record, StageRecord, Timer
from feathervlm.engine.rows import RowTracker
from feathervlm.engine.waiting import WaitingGroups


class StagesDone(Exception):  # noqa: N818 - it is no error
    """Ends a scoring pass after its last stage."""


class Prefill:
    """The state and the hooks of one pruned prefill.

    Args:
        decoder: View of the decoder.
        family: Family of the model.
        schedule: The stages to run.
        call: The call that is about to run.
        layout: Layout of its visual tokens, on the input's device.
        hook_status: Status that the pruned cache layers depend on.
        reused: Tokens to keep at each stage, bool (batch, visual), in place of what its selector would choose.
        scored: Records of scoring passes, by their signal.
        refuse: Callback, called with the error in place of raising it, if the first stage finds that it cannot prune.
    """

    def __init__(
        self,
        decoder: DecoderView,
        family: Family,
        schedule: Schedule,
        call: ModelCall,
        layout: VisualLayout,
        hook_status: HookStatus,
        reused: Sequence[Tensor] | None = None,
        scored: Mapping[Survivors, Record] | None = None,
        refuse: Callable[[Unprunable], None] | None = None,
    ) -> None:
        self.decoder, self.family, self.call, self.layout = decoder, family, call, layout
        self.hook_status, self.reused, self.refuse = hook_status, reused, refuse
        self.stages = dict(zip(schedule.at_layers(len(decoder.layers)), schedule.stages, strict=True))
        self.starts = sorted(self.stages)
        self.batch, self.sequence = call.shape
        device = layout.mask.device
        mask: Any = call.arguments.get("attention_mask")
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        self.attended = mask[:, -self.sequence :].to(device).bool() if padded else None
        turns = find_turns(call, layout, attended_of(call, device))
        self.rows = RowTracker(layout, self.attended, turns)
        scored = scored or {}
        survivors = {signal: record.stages[-1].kept for signal, record in scored.items()}
        self.reader = SignalReader(decoder, family, call, self.rows, survivors)
        self.stored = [self.sequence]  # rows whose keys the layers before each stage have
        self.present: list[tuple[Tensor, Tensor | None]] = []  # positions and validity of the rows after each stage
        self.full: Tensor | None = None  # hidden states of all rows, into which the present rows return
        self.frozen: Tensor | None = None  # those of the frozen rows
        self.groups: WaitingGroups | None = None  # whose means run while tokens wait
        self.arguments = LayerArguments(decoder, family, self.rows, hook_status)
        self.earlier: HiddenEarlier | None = None
        self.ends_after_stages = False  # for a scoring pass
        self.states: Tensor | None = None  # that the last stage of a scoring pass leaves, (batch, rows, dim)
        self.handles: list[RemovableHandle] = []
        self.abandoned = False
        self.entered: list[int] = []  # layers whose hooks have run
        self.restored = False
        self.unpruned = Decode(decoder, self.starts, lasting=False)  # for layers pruned in earlier turns, if abandoned
        cache = call.arguments.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())
        costs = decoder.costs, self.past
        self.record = Record(layout, self.attended, turns.by_image, self.sequence, *costs, types=decoder.layer_types)
        self.record.shown, self.record.crops = family.shown, family.crops
        self.record.notes += [*family.notes, *decoder.cost_notes]
        check_labels(call, layout)
        self.record.scoring += scored.values()
        if self.past:
            check_later_turn(schedule)
            trimmed = next((layer for at, layer in pruned_layers(cache).items() if at < self.starts[0]), None)
            if trimmed is not None:
                columns, valid = trimmed.columns(0, device)
                self.record.before = columns.shape[1], valid

    def hide_earlier(self, at: int, kept: Sequence[Tensor]) -> None:
        """Hide what the stage before layer `at` drops from later text in the layers before it, as its cut caches do.

        Args:
            at: Index of the layer.
            kept: Tokens that each stage keeps, bool (batch, visual).
        """
        dropping = kept[self.starts.index(at)]
        self.earlier = HiddenEarlier(self.decoder, range(at), self.layout, dropping, self.rows.turns.by_image)

    def install(self) -> "Prefill":
        """Register the hooks.

        Raises:
            Unprunable: If a stage reads a signal that the model cannot give.
        """
        layers, cache = self.decoder.layers, self.call.arguments.get("past_key_values")
        try:
            for index in pruned_layers(cache):
                if index < self.starts[0]:  # trimmed in an earlier turn: this input runs on the slots that stayed
                    hook = partial(self.unpruned.enter, index, 0)
                    self.handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            for index in range(self.starts[0], len(layers)):
                hook = partial(self._enter, index)
                self.handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            for at, stage in self.stages.items():
                self.handles += self.reader.attach(stage, at)
            if self.earlier is not None:
                self.handles += self.earlier.attach()
            for index in [*range(self.starts[0], min(self.family.injected + 1, len(layers) - 1)), len(layers) - 1]:
                self.handles.append(layers[index].register_forward_hook(self._restore))
            for (at, stage), end in zip(self.stages.items(), [*self.starts[1:], len(layers)], strict=True):
                if stage.skip is not None:
                    self.handles += skip_half(self.decoder, self.rows, stage.skip, range(at, end))
            if self.starts[-1] == len(layers):
                self.handles.append(layers[-1].register_forward_hook(self._end, with_kwargs=True))
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.abandoned:
            return self.unpruned.enter(index, bisect_right(self.starts, index), module, args, kwargs)
        whole = index == self.starts[0] or index - 1 <= self.family.injected
        self._check_rows(f"reach layer {index}", hidden, self.sequence if whole else self.rows.positions.shape[1])
        try:
            if whole:
                self.full = hidden  # all rows: nothing is dropped yet, or they are back for the model to add features
            if index in self.stages and self.rows.away:
                hidden = self._rejoin(hidden, whole)
            elif whole and index > self.starts[0]:
                hidden = gather_rows(hidden, self.rows.positions, -2)
            elif self._holds(index) and not whole:
                self.full = self._returned(hidden)  # tokens leave with the states that they have now
            if index in self.stages:
                hidden = self._run_stage(index, hidden, kwargs)
                if self.ends_after_stages and index == self.starts[-1]:
                    self.states = hidden
                    raise StagesDone
            given, kwargs = kwargs, self.arguments.rewrite(index, kwargs, hidden.dtype)
            if index in self.stages:
                self.record.stages[-1].past = self.arguments.past_slots
                self._trim_earlier(index, kwargs.get("past_key_values"))
            if self.rows.apart is not None:
                kwargs = self._with_apart(index, hidden, args[1:], given, kwargs, whole)
        except Unprunable as error:
            if self.refuse is None or index > self.starts[0]:
                raise
            self.abandoned = True
            self.refuse(error)
            if kwargs.get("past_key_values") is not None:
                restore_static(kwargs["past_key_values"])
            return self._enter(index, module, args, kwargs)
        self.entered.append(index)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _check_rows(self, where: str, hidden: Tensor, expected: int) -> None:
        if hidden.shape[-2] != expected:
            raise PruningError(
                f"Hidden states of {hidden.shape[-2]} tokens {where} of {type(self.decoder.model).__name__}, where "
                f"{expected} remain, so its layers do not all run as modules with hooks; undo what replaces their "
                "calls, or prune before."
            )

    def check_ran(self) -> None:
        """Check that the hooks of all layers have run, so that what the record says has happened.

        Raises:
            Unprunable: If none has, so that the forward was that of the unpruned model.
            PruningError: If only some have.
        """
        if self.ends_after_stages and len(self.record.stages) == len(self.stages):
            return
        depth, name = len(self.decoder.layers), type(self.decoder.model).__name__
        missing = [index for index in range(self.starts[0], depth) if index not in self.entered]
        if not self.entered and not self.restored:
            raise Unprunable(
                f"{name} ran without the hooks of its layers {missing[0]} to {depth - 1}, so nothing was pruned; undo "
                "what replaces their calls (a compiled or patched function that was made before)."
            )
        if missing or not self.restored:
            raise PruningError(
                f"{name} ran without the hooks of its layers {missing or depth - 1}, so its output is wrong; undo what "
                "replaces their calls (a compiled or patched function that was made before)."
            )

    def _run_stage(self, at: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Choose tokens, merge and drop; return the states of the rows that stay."""
        stage = self.stages[at]
        self.reader.enter(at, hidden, kwargs)
        with torch.no_grad():
            timer = Timer(self.layout.mask.device)
            turns, entered = self.rows.turns, self.rows.present
            tokens = Candidates(turns.layout.geometry(), turns.split(entered), self.reader)
            reused = None if self.reused is None else turns.split(self.reused[len(self.record.stages)])
            result = run_stage(stage, tokens, reused)
        merged = None
        if stage.merge is not None and result.groups is not None:
            view = self.rows.view()
            visual = view.take(hidden, view.visual).to(result.groups.device)
            merged = stage.merge.combine(visual, result.groups, tokens).to(hidden.device)
            if turns.row is not None:
                merged = turns.join(merged, gather_rows(hidden, self.rows.visual, -2))
        with torch.no_grad():
            kept = runs = turns.join(result.kept, torch.zeros_like(entered))
            if result.means is not None:
                self.groups = WaitingGroups.of(result.means, hidden, self.rows, kept)
                runs, merged = kept | self.groups.runs, self.groups.means
            order = self.rows.leave(stage, runs, planned=self.reused is None and result.means is None)
            if self.refuse is not None:
                self.rows.check()  # while the forward can still run unpruned
        scores, groups = result.scores, result.groups
        if scores is not None:
            scores = turns.join(scores, scores.new_zeros(entered.shape))
        if groups is not None:
            groups = turns.join_groups(groups, entered)
        record = StageRecord(at, entered, kept, scores, groups, timer.stop(), cut=stage.cache == "all")
        record.leave, record.skip = stage.leave, stage.skip
        record.means = None if result.means is None or self.groups is None else self.groups.runs
        self.record.stages.append(record)
        self.record.notes += [note for note in self.reader.notes(stage) if note not in self.record.notes]
        self.reader.leave()
        self.arguments.next_stage()
        self.frozen = None
        self.present.append((self.rows.positions, self.rows.valid))
        hidden = hidden if order is None else gather_rows(hidden, order, -2)
        return hidden if merged is None else self._write_visual(hidden, merged)

    def _holds(self, index: int) -> bool:
        """Return whether the states of tokens that leave before a layer are needed again."""
        leave = self.stages[index].leave if index in self.stages else "drop"
        return leave == "freeze" or (leave == "wait" and index != self.starts[-1])

    def _rejoin(self, hidden: Tensor, whole: bool) -> Tensor:
        """Return the states of all candidates of the next stage: rows that ran, that are frozen, and that wait.

        Args:
            hidden: States that enter the layer.
            whole: Whether they are of all rows.
        """
        full = hidden if whole else self._returned(hidden)
        if self.groups is not None and self.full is not None:
            full = self.groups.update(full, self.full, self.rows)
            self.groups = None
        self.full = full
        self.rows.rejoin()
        return gather_rows(full, self.rows.positions, -2)

    def _with_apart(
        self,
        index: int,
        hidden: Tensor,
        args: tuple[Any, ...],
        given: dict[str, Any],
        kwargs: dict[str, Any],
        whole: bool,
    ) -> dict[str, Any]:
        """Return the arguments of a layer with a cache that adds the keys and values of rows that do not attend.

        Args:
            index: Index of the layer.
            hidden: States that enter it.
            args: Its other positional arguments.
            given: Its named arguments for all rows.
            kwargs: Its named arguments for the rows that attend.
            whole: Whether the model has added to the states of all rows before this layer.
        """
        apart, rows = self.rows.apart, self.rows
        assert apart is not None
        assert self.full is not None
        if apart.rows.index is not None:
            states = gather_rows(hidden, apart.rows.index, -2)
        else:
            if self.frozen is None or whole:
                self.frozen = gather_rows(self.full, apart.rows.positions, -2)
            states = self.frozen = self.frozen.to(hidden.device)
        rows.making_apart = True
        try:
            taken = keys_and_values(self.decoder, index, states, args, self.arguments.apart(index, given))
        finally:
            rows.making_apart = False
        return {**kwargs, "past_key_values": JoinedCache(kwargs.get("past_key_values"), apart, taken)}

    def _write_visual(self, hidden: Tensor, states: Tensor) -> Tensor:
        """Return `hidden` with `states` (batch, visual, dim) in the rows of the present visual tokens."""
        # Dropped tokens go to a row that is cut off again.
        place = torch.where(self.rows.present, self.rows.visual, hidden.shape[1]).to(hidden.device)
        longer = torch.nn.functional.pad(hidden, (0, 0, 0, 1))
        return longer.scatter(1, place[..., None].expand_as(states), states)[:, :-1]

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return a layer's output with the present rows in their original places."""
        if self.abandoned:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        self.restored = True
        if self.full is None:  # no stage before the end
            return output
        self._check_rows("leave a layer", hidden, self.rows.positions.shape[1])
        full = self._returned(hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _returned(self, hidden: Tensor) -> Tensor:
        """Return the states of all rows, with these of the present rows in their original places."""
        assert self.full is not None
        index = self.rows.positions.to(hidden.device)
        full = self.full.to(hidden.device)
        if self.rows.valid is not None:
            # Fillers go to a row that is cut off again. Padding has run through all layers as it would have.
            real = self.rows.valid
            if self.attended is not None:
                real = real | ~self.attended.gather(1, self.rows.positions)
            full = torch.nn.functional.pad(full, (0, 0, 0, 1))
            index = torch.where(real.to(hidden.device), index, self.sequence)
        if len(index) == 1 and full.dim() == 3:
            full = full.index_copy(1, index[0], hidden)  # moves whole rows
        else:
            full = full.scatter(-2, index[..., None].expand(*index.shape, hidden.shape[-1]), hidden)
        return full[..., : self.sequence, :]

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Run the stage after the last layer, which cuts caches; the hook after that layer."""
        if self.abandoned:
            return
        at, hidden = len(self.decoder.layers), output[0] if isinstance(output, tuple) else output
        hidden = self._rejoin(hidden, whole=True) if self.rows.away else gather_rows(hidden, self.rows.positions, -2)
        self._run_stage(at, hidden, kwargs)
        if self.ends_after_stages:
            raise StagesDone
        cache = kwargs.get("past_key_values")
        self._trim_earlier(at, cache.cache if isinstance(cache, JoinedCache) else cache)

    def _trim_earlier(self, at: int, cache: Any) -> None:
        """Drop the tokens from the cache of the layers before a stage as well, where the stage asks for that."""
        count = self.rows.read.positions.shape[1]
        if self.stages[at].cache == "all":
            if cache is None:
                self.record.notes.append(f"nothing is cached, so layers before {at} see all tokens again at every step")
            else:
                earlier = EarlierLayers(cache, self.rows, self.past, self.hook_status)
                for index in filter(self.decoder.keeps_keys, range(at)):
                    stage = bisect_right(self.starts, index)
                    earlier.trim(index, self.stored[stage], (stage, self.decoder.layer_types[index]))
            self.stored = [count] * len(self.stored)
        self.stored.append(count)
