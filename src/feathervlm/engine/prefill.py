"""One pruned forward: hooks that live exactly as long as the call that they prune.

At each stage's layer the surviving rows are gathered once; from there on every layer gets their positions, its own
gathered mask and a pruned cache layer; after the last layer the rows return to their places, so the caller sees
tensors of the original length. Everything outside a pruned layer is in original coordinates.
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
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors import ImageTokens
from feathervlm.core.signals import Attention, Features, Signal, Survivors
from feathervlm.engine.anatomy import FLASH, Anatomy, rows, tree_rows
from feathervlm.engine.attention import QueryKeyTap, Row
from feathervlm.engine.cache import Attachment, Prefix, PrunedStaticLayer, pruned_layer, restore_static
from feathervlm.engine.decode import Decode
from feathervlm.engine.family import Call, Family
from feathervlm.engine.masks import pruned_mask
from feathervlm.engine.records import Later, Record, StageRecord, Stopwatch

ENDS_INSIDE = (
    "The prompt ends inside an image, so there is no text token to ask with; pass the whole prompt in one forward "
    "(no chunked prefill), with text after the image."
)


class Prefill:
    """The state of one pruned forward.

    Args:
        anatomy: of the decoder.
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
        anatomy: Anatomy,
        family: Family,
        schedule: Schedule,
        call: Call,
        layout: VisualLayout,
        attachment: Attachment,
        given: Sequence[Tensor] | None = None,
        survivors: dict[Survivors, Tensor] | None = None,
        refuse: Callable[[Unprunable], None] | None = None,
    ) -> None:
        self.anatomy, self.family, self.call, self.layout = anatomy, family, call, layout
        self.attachment, self.given, self.survivors, self.refuse = attachment, given, survivors or {}, refuse
        self.stages = dict(zip(schedule.at_layers(len(anatomy.layers)), schedule.stages, strict=True))
        self.starts = sorted(self.stages)
        self.batch, self.sequence = call.shape
        device = layout.mask.device
        mask: Any = call.arguments.get("attention_mask")
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        self.attended = mask[:, -self.sequence :].to(device).bool() if padded else None
        # The rows that are left, and where the query and the visual tokens are among them.
        self.positions = torch.arange(self.sequence, device=device)[None].expand(self.batch, -1)
        self.valid = self.attended
        self.query = query_position(call, layout, self.attended)
        self.slots = layout.positions()
        self.geometry = layout.geometry()
        self.present = self.geometry.exists
        self.sizes = [[f * r * c for f, r, c in sample] for sample in layout.shapes]  # tokens left in every image
        self.shift: Tensor | None = None  # (batch, rows), by how much position ids are reduced
        self.stage = -1
        self.full: Tensor | None = None  # hidden states of all rows as they entered the first stage
        self.embeddings: Tensor | None = None  # (batch, visual, dim), projected features
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.taps: dict[int, QueryKeyTap] = {}
        self.handles: list[RemovableHandle] = []
        self.abandoned = False
        self.unpruned = Decode(anatomy, self.starts, lasting=False)  # for what earlier turns pruned, once abandoned
        self.ends_inside: Later | None = None
        cache = call.arguments.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.record = Record(layout, self.attended, self.sequence, anatomy.costs, self.past)
        check_labels(call, layout)
        if self.past:
            self._check_first_prompt_only()

    # -- hooks --------------------------------------------------------------------------------------------------

    def install(self) -> "Prefill":
        """Put the hooks in place.

        Raises:
            Unprunable: if a stage asks for a signal that the model does not give.
        """
        layers = self.anatomy.layers
        try:
            for index in range(self.starts[0], len(layers)):
                self.handles.append(
                    layers[index].register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
                )
            for at, stage in self.stages.items():
                for signal in stage.select.signals():
                    self._arm(signal, at)
            self.handles.append(layers[-1].register_forward_hook(self._restore))
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
        signals = [signal for stage in self.stages.values() for signal in stage.select.signals()]
        if any(isinstance(signal, Attention) and signal.over == "all" for signal in signals):
            raise Unprunable("over='all' needs the keys of earlier turns, which are cached rotated; use over='visual'.")

    def _arm(self, signal: Signal, at: int) -> None:
        if isinstance(signal, Attention) and signal.rope:
            self.anatomy.rotate(at)  # refuse now rather than in the middle of the forward
        if isinstance(signal, Attention) and signal.layer == "K-1":
            layer, _ = self.anatomy.scoring_layer(at - 1)
            if layer not in self.taps:
                self.taps[layer] = QueryKeyTap(self.anatomy, layer, self._where)
                self.handles += self.taps[layer].attach()
        elif isinstance(signal, Features) and signal.source == "projected" and self.embeddings is None:
            first = self.anatomy.layers[0]
            # Ahead of the pruning hook, which may drop rows at this very layer.
            self.handles.append(first.register_forward_pre_hook(self._see_embeddings, with_kwargs=True, prepend=True))

    def _where(self) -> Row:
        return Row(self.query, self.slots, self.positions, self.valid)

    def _see_embeddings(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.embeddings = rows(hidden.detach(), self.layout.positions(), -2)

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.abandoned:
            return self.unpruned.enter(index, bisect_right(self.starts, index), module, args, kwargs)
        try:
            if index in self.stages:
                hidden = self._prune(index, self.stages[index], hidden, kwargs)
            kwargs = self._rewrite(index, dict(kwargs), hidden)
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
        index = self.positions.to(hidden.device)
        full = self.full
        if self.valid is not None:
            # Fillers go to a row that is cut off again. Padding has run through all layers as it would have.
            real = self.valid if self.attended is None else self.valid | ~self.attended.gather(1, self.positions)
            full = torch.nn.functional.pad(full, (0, 0, 0, 1))
            index = torch.where(real.to(hidden.device), index, self.sequence)
        full = full.scatter(-2, index[..., None].expand(*index.shape, hidden.shape[-1]), hidden)
        full = full[..., : self.sequence, :]
        return (full, *output[1:]) if isinstance(output, tuple) else full

    # -- a stage ------------------------------------------------------------------------------------------------

    def _prune(self, index: int, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self.stage += 1
        self.at, self.entering = index, (hidden, kwargs)
        with torch.no_grad():
            watch = Stopwatch(hidden.device)
            tokens = Candidates(self.geometry, self.present, self)
            if self.given is None:
                chosen = stage.select.select(tokens) & self.present
            else:
                chosen = self.given[self.stage].to(self.present.device) & self.present
            kept, order, ragged = self._reduce(stage, chosen)
            self._follow(stage, chosen, kept, order, ragged)
            self.record.stages.append(
                StageRecord(index, tokens.present, chosen, next(iter(tokens.scores.values()), None), watch.stop())
            )
        self._note_scoring(stage, index)
        if self.full is None:
            self.full = hidden
        del self.entering
        return rows(hidden, order, -2)

    def _reduce(self, stage: Stage, chosen: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Which rows stay: (bool (batch, rows), long (batch, n) in order, whether samples differ in their number)."""
        count = self.positions.shape[1]
        slots = torch.where(self.present, self.slots, count)
        kept = torch.ones(self.batch, count + 1, dtype=torch.bool, device=chosen.device)
        kept = kept.scatter(1, slots, chosen)[:, :count]
        if self.valid is not None:
            kept = kept & self.valid
        numbers = self._numbers(stage, kept, chosen)
        most = max(numbers)
        # Shorter samples are filled on the left, as padding is: with tokens just dropped, which stay masked.
        order = torch.sort(kept.to(torch.uint8), dim=1, stable=True).indices[:, count - most :]
        return kept, order, min(numbers) < most

    def _numbers(self, stage: Stage, kept: Tensor, chosen: Tensor) -> list[int]:
        """Rows that stay in every sample: known beforehand, or the stage's one device sync."""
        planned = None if self.given is not None or self.valid is not None else self._planned(stage)
        if planned is not None:
            if self.stage == 0:
                self.ends_inside = Later((self.present & (self.slots == self.query[:, None])).any())
                if self.refuse is not None:
                    self.check()  # while there is still time to run unpruned
            dropped = [sum(old) - sum(new) for old, new in zip(self.sizes, planned, strict=True)]
            self.sizes = planned
            return [kept.shape[1] - count for count in dropped]
        images = torch.zeros(self.batch, self.geometry.images, dtype=torch.long, device=chosen.device)
        images.scatter_add_(1, self.geometry.image, chosen.long())
        inside = torch.zeros(self.batch, kept.shape[1] + 1, dtype=torch.bool, device=chosen.device)
        inside.scatter_(1, torch.where(self.present, self.slots, kept.shape[1]), self.present)
        query = inside.gather(1, self.query[:, None]).long()
        # The rows all leave the device together.
        facts = torch.cat([kept.sum(1, keepdim=True), query, images], dim=1).tolist()
        if any(fact[1] for fact in facts):
            raise Unprunable(ENDS_INSIDE)
        self.sizes = [fact[2 : 2 + len(shapes)] for fact, shapes in zip(facts, self.layout.shapes, strict=True)]
        return [fact[0] for fact in facts]

    def check(self) -> None:
        """Raise `Unprunable` for what need not be known, and so was not waited for, before the layers ran."""
        if self.ends_inside:
            raise Unprunable(ENDS_INSIDE)

    def _planned(self, stage: Stage) -> list[list[int]] | None:
        planned = []
        for shapes, sizes in zip(self.layout.shapes, self.sizes, strict=True):
            images = [ImageTokens(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
            counts = [stage.select.size(image) for image in images]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                return None
            planned.append(known)
        return planned

    def _follow(self, stage: Stage, chosen: Tensor, kept: Tensor, order: Tensor, ragged: bool) -> None:
        """Move everything that points at rows to the rows that are left."""
        if stage.positions == "renumber":
            dropped = torch.zeros(self.batch, self.sequence, dtype=torch.long, device=order.device)
            gone = self.geometry.exists & ~chosen
            original = torch.where(self.geometry.exists, self.layout.positions(), self.sequence - 1)
            dropped.scatter_add_(1, original, gone.long())
            self.shift = dropped.cumsum(1).gather(1, self.positions.gather(1, order))
        elif self.shift is not None:
            self.shift = self.shift.gather(1, order)
        place = torch.zeros_like(self.positions).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        self.positions = self.positions.gather(1, order)
        self.valid = kept.gather(1, order) if ragged else None
        self.slots = place.gather(1, self.slots)
        self.query = place.gather(1, self.query[:, None])[:, 0]
        self.present = chosen

    def _note_scoring(self, stage: Stage, index: int) -> None:
        for signal in stage.select.signals():
            if isinstance(signal, Attention) and signal.layer == "K-1":
                note = self.anatomy.scoring_layer(index - 1)[1]
                if note and note not in self.record.notes:
                    self.record.notes.append(note)

    # -- signals ------------------------------------------------------------------------------------------------

    def read(self, signal: Signal) -> Tensor:
        """See `feathervlm.core.signals.Signals`."""
        if isinstance(signal, Attention):
            return self._attention(signal)
        if isinstance(signal, Survivors):
            return self.survivors[signal]
        if signal.source == "vision":
            return self.family.vision_features(self.call, self.layout)
        assert self.embeddings is not None
        return self.embeddings

    def _attention(self, signal: Attention) -> Tensor:
        hidden, kwargs = self.entering
        if signal.layer == "K-1":
            return self.taps[self.anatomy.scoring_layer(self.at - 1)[0]].scores(signal, self.present)
        tap = QueryKeyTap(self.anatomy, self.at, self._where)
        mask = None
        if signal.over == "all":  # the layer's own mask, which is still of the unpruned sequence
            place, attention = self.positions, self.anatomy.attention
            given = kwargs.get("attention_mask")
            mask = pruned_mask(given, place, place, place, self.valid, 0, attention, hidden.dtype)
        tap.project(hidden, self._tables(kwargs, hidden), mask)
        return tap.scores(signal, self.present)

    # -- a layer ------------------------------------------------------------------------------------------------

    def _rewrite(self, index: int, kwargs: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """The layer's arguments for the rows that are left."""
        cache = kwargs.get("past_key_values")
        kind = self.anatomy.layer_types[index]
        self._check_unknown(kwargs)
        kwargs["attention_mask"] = self._mask(index, kind, kwargs, cache, hidden)
        key = ("tables", self.stage, kind)
        if key not in self.memo:
            self.memo[key] = self._tables(kwargs, hidden)
        kwargs["position_embeddings"] = self.memo[key]
        ids = kwargs.get("position_ids")
        if isinstance(ids, Tensor):
            kwargs["position_ids"] = self._position_ids(ids)
        return kwargs

    def _tables(self, kwargs: dict[str, Any], hidden: Tensor) -> Any:
        tables = kwargs.get("position_embeddings")
        if tables is None:
            return None
        if self.shift is None:
            return tree_rows(tables, self.positions)
        ids = kwargs.get("position_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise Unprunable("Positions of this model are not one number per token; use positions='preserve'.")
        return self.anatomy.rotary_tables(hidden, rows(ids, self.positions, -1) - self.shift.to(ids.device))

    def _position_ids(self, ids: Tensor) -> Tensor:
        if FLASH in self.anatomy.attention:
            # Flash attention takes ids with gaps for packed sequences; the rotation is in the tables already.
            return torch.arange(self.positions.shape[1], device=ids.device)[None]
        taken = rows(ids, self.positions, -1)
        return taken if self.shift is None else taken - self.shift.to(ids.device)

    def _check_unknown(self, kwargs: dict[str, Any]) -> None:
        known = {"attention_mask", "position_ids", "position_embeddings", "hidden_states"}
        for name, value in kwargs.items():
            if name not in known and isinstance(value, Tensor) and self.sequence in value.shape:
                raise Unprunable(
                    f"Decoder layers are given {name} of shape {tuple(value.shape)}: a sequence dimension "
                    "that the engine does not know how to prune."
                )

    def _mask(self, index: int, kind: str, kwargs: dict[str, Any], cache: Any, hidden: Tensor) -> Any:
        layer = None
        key = ("mask", self.stage, kind)
        if cache is not None:
            layer = pruned_layer(cache, index, self.attachment, self.sequence - self.positions.shape[1])
            if ("columns", *key) not in self.memo:
                self.memo["columns", *key] = self._columns(layer)
            columns, valid, prefix, offset, past = self.memo["columns", *key]
            layer.pending = prefix
            if isinstance(layer, PrunedStaticLayer):
                layer.map = columns, valid
        else:
            columns, valid, offset, past = self.positions, self.valid, 0, 0
        if key not in self.memo:
            if index in self.stages:
                self.record.stages[-1].past = (columns.shape[1] - hidden.shape[-2], valid) if past else None
            self.memo[key] = pruned_mask(
                kwargs.get("attention_mask"),
                self.positions,
                self.positions + past,
                columns,
                valid,
                offset,
                self.anatomy.attention,
                hidden.dtype,
            )
        return self.memo[key]

    def _columns(self, layer: Any) -> tuple[Tensor, Tensor | None, Prefix, int, int]:
        """What the layer's keys will stand for once this forward's arrive, and as seen by the model's own mask."""
        device = self.positions.device
        past = int(layer.get_seq_length()) if layer.is_initialized else 0
        offset = layer.get_mask_sizes(self.sequence)[1]
        index, valid = self.positions + past, self.valid
        shift = None
        if self.shift is not None:
            shift = self.shift.amax(1, keepdim=True)
        if past:
            before, before_valid = layer.columns(0, device)
            before = before.expand(self.batch, -1)
            if valid is not None or before_valid is not None:
                pair = [
                    mask if mask is not None else torch.ones_like(of, dtype=torch.bool)
                    for mask, of in ((before_valid, before), (valid, index))
                ]
                valid = torch.cat(pair, 1)
            index = torch.cat([before, index], 1)
        prefix = Prefix(index, valid, past + self.sequence, shift)
        if isinstance(layer, PrunedStaticLayer):
            layer.pending = prefix
            return (*layer.columns(0, device), prefix, offset, past)
        return index, valid, prefix, offset, past


def query_position(call: Call, layout: VisualLayout, attended: Tensor | None) -> Tensor:
    """The position that asks for tokens, the last of each prompt: long (batch,).

    Speculative decoding appends candidates to the prompt and asks for their logits, so the prompt ends where the
    asked logits begin. In training the prompt ends before the first label. Either counts only if it leaves the
    query behind the images; otherwise the last token of the input asks.
    """
    batch, sequence = call.shape
    device = layout.mask.device
    if layout.query is not None:
        return layout.query.to(device)
    index = torch.arange(sequence, device=device)
    last = torch.full((batch,), sequence - 1, device=device)
    if attended is not None:
        last = (attended * index).argmax(1)
    images_end = (layout.mask * (index + 1)).amax(1)
    if isinstance(call.logits_to_keep, int) and call.logits_to_keep > 1:
        before = last - (call.logits_to_keep - 1)
        last = torch.where(before >= images_end, before, last)
    if call.labels is not None:
        labelled = call.labels.to(device) != -100
        first = torch.where(labelled.any(1), labelled.to(torch.uint8).argmax(1), 0)
        last = torch.where(first > images_end, first - 1, last)
    return last


def check_labels(call: Call, layout: VisualLayout) -> None:
    """Refuse labels that are predicted at a visual token, whose state may be stale once it is dropped.

    Raises:
        Unprunable: naming the sample.
    """
    if call.labels is None:
        return
    asked = layout.mask[:, :-1] & (call.labels.to(layout.mask.device)[:, 1:] != -100)
    if asked.any():
        sample = int(asked.any(1).nonzero()[0])
        raise Unprunable(
            f"Sample {sample} has a label right after a visual token, predicted from a token that may be dropped; "
            "set the labels of visual tokens and of the token after each image to -100."
        )
