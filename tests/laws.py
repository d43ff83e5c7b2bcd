"""What the laws of pruning compare: generation with logits, the schedule that repeats what a report says, the unpruned
model with the dropped tokens hidden, and the traces that pruning could leave."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import transformers

import tiny_models as tiny
from feathervlm import Schedule
from feathervlm.core import Clusters, Given, Merger, Nearest, Pool
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.decoder import DecoderView

TOLERANCE = 2e-4
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


def generate(model, inputs, tokens=4, **options):
    """Greedy generation: (new tokens, their logits, cache)."""
    options = {"do_sample": False, "output_logits": True, **options}
    out = model.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values


def planned(method):
    """The schedule of a method, or of a schedule itself."""
    return method if isinstance(method, Schedule) else method.schedule()


def targets(report):
    """For every stage and sample the target of each token that entered, by original indices; None without a merge."""
    entered = None
    for stage in report.stages:
        groups = stage.groups and [groups.tolist() for groups in stage.groups]
        names = entered or [range(len(sample)) for sample in groups or []]
        yield groups and [dict(zip(*each, strict=True)) for each in zip(names, groups, strict=True)]
        entered = [kept.tolist() for kept in stage.kept]


@dataclass(frozen=True, eq=False)
class RecordedMerger(Merger):
    """Merge as a report says, in place of a merger that reads the text: more text would change its groups."""

    recorded: list

    def targets(self, tokens, kept):
        result = torch.full(kept.shape, -1)
        for row, groups in zip(result, self.recorded, strict=True):
            for token, target in groups.items():
                row[token] = target
        return result


def frozen(method, report, *later, row=None):
    """Return the method's schedule with the tokens that reports say were kept in place of its selectors.

    Args:
        method: the method or schedule that was run.
        report: what it did.
        later: what it did in later turns with images; with `row`.
        row: the only sample of the batch to repeat; None for all.
    """
    rows = slice(None) if row is None else slice(row, row + 1)
    stages = []
    for index, (stage, groups) in enumerate(zip(planned(method), targets(report), strict=True)):
        kept, start = report.stages[index].kept[rows], report.record.layout.counts[row or 0]
        for turn in later:
            kept = [torch.cat([kept[0], turn.stages[index].kept[row] + start])]
            start += turn.record.layout.counts[row]
        merge = RecordedMerger(groups[rows]) if isinstance(stage.merge, Clusters) else stage.merge
        stages.append(replace(stage, at=report.stages[index].layer, select=Given(kept), merge=merge))
    return Schedule(*stages, encoder=planned(method).encoder)


def layout_of(ids, image, side):
    """The layout of prompts whose visual tokens are runs of the id `image`, each a square."""
    mask = ids == image
    return VisualLayout(mask, [[(1, side, side)] * (int(row.sum()) // side**2) for row in mask])


def exchanged(places, seed, side=tiny.SIDE):
    """Return where each visual token of a sample goes if those of every image exchange places at random."""
    draws = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
    taken = list(places)
    for start in range(0, len(places), side**2):
        image = range(start, start + side**2)
        for place, token in zip(image, sorted(image, key=lambda token: draws[token]), strict=True):
            taken[token] = places[place]
    return taken


def pooled(states, places, stride, side=tiny.SIDE):
    """Return the states of a sample with the mean of every block in place of its first cell, image by image."""
    states = states.clone()
    for start in range(0, len(places), side**2):
        image = torch.tensor(places[start : start + side**2])
        blocks = states[image].T.reshape(1, -1, side, side)
        means = torch.nn.functional.avg_pool2d(blocks, stride, ceil_mode=True)[0].flatten(1).T
        states[image.view(side, side)[::stride, ::stride].flatten()] = means
    return states


def gathered(states, places, groups, onto):
    """Return the states of a sample with the mean of every group in place of its kept token, or added onto that."""
    states, members = states.clone(), {}
    for token, target in groups.items():
        if target >= 0 and target != token:
            members.setdefault(target, []).append(places[token])
    for target, others in members.items():
        own, mean = states[places[target]].clone(), states[others].mean(0)
        states[places[target]] = own + mean if onto else (own + len(others) * mean) / (len(others) + 1)
    return states


@contextmanager
def hidden(model, visual, attended, report, method, answer=None):
    """Let the unpruned model do with masks, positions and states in place what pruning does by removing tokens.

    From each stage's layer on, nothing sees the tokens that the report says were dropped. Positions move and tokens
    merge where the method says so; for merges into several tokens the test is skipped.

    Args:
        model: the model, not pruned.
        visual: bool (batch, sequence), the visual tokens. Those that move or merge are of images with `tiny.SIDE` rows.
        attended: (batch, sequence), the tokens that are not padding.
        report: what pruning did.
        method: the method or schedule that did it.
        answer: position of the first generated token. From there on, the layers before a stage with `cache="all"`
            see none of the tokens that it has dropped.
    """
    view, attended = DecoderView(model), attended.bool()
    rows = torch.arange(visual.shape[1])
    places = [row.nonzero()[:, 0].tolist() for row in visual]
    dropped, cut, moved, merged = {}, [], {}, {}
    for stage, plan, groups in zip(report.stages, planned(method), targets(report), strict=True):
        dropped[stage.layer] = visual.clone()
        for sample, kept in enumerate(stage.kept):
            dropped[stage.layer][sample, visual[sample].nonzero()[:, 0][kept]] = False
        if plan.cache == "all" and answer is not None:
            cut.append(stage.layer)
        if plan.positions == "renumber":
            shift = dropped[stage.layer].long().cumsum(1)
            moved[stage.layer] = lambda ids, shift=shift: ids - shift
        elif plan.positions == "shuffle":
            taken = rows.repeat(len(visual), 1)
            for sample, own in enumerate(places):
                taken[sample, own] = torch.tensor(exchanged(own, plan.seed), dtype=torch.long)
            moved[stage.layer] = lambda ids, taken=taken: ids.expand_as(taken).gather(1, taken)
        if isinstance(plan.merge, Pool):
            merged[stage.layer] = [partial(pooled, stride=plan.merge.stride)] * len(visual)
        elif isinstance(plan.merge, Nearest | Clusters):
            onto = getattr(plan.merge, "form", "mean") == "onto"
            merged[stage.layer] = [partial(gathered, groups=sample, onto=onto) for sample in groups]
        elif plan.merge is not None:
            pytest.skip("a token goes into several here; tests/methods/test_encoder_methods.py does so by hand")

    def change(index, module, args, kwargs):
        mask = kwargs["attention_mask"]
        every = rows[:, None] >= rows[None, :] if view.is_causal(index) else torch.ones(len(rows), len(rows)).bool()
        allowed = every if mask is None else mask
        allowed = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
        layer, later = (max(found, default=None) for found in ([at for at in dropped if at <= index], cut))
        ignored = torch.zeros_like(visual)[:, None] if layer is None else dropped[layer][:, None]
        if later is not None and later > index:
            ignored = ignored | dropped[later][:, None] & (rows >= answer)[:, None]
        # A hidden token still sees itself: its own state is never read, but must stay finite.
        allowed = allowed & (~ignored & attended[:, None])[:, None] | torch.eye(len(rows), dtype=torch.bool)
        eager = view.attention == "eager"
        allowed = torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if eager else allowed
        kwargs = {**kwargs, "attention_mask": allowed}
        move = moved.get(max((at for at in moved if at <= index), default=None))
        if move is not None:
            kwargs["position_embeddings"] = view.decoder.rotary_emb(args[0], position_ids=move(kwargs["position_ids"]))
        if index in merged:
            samples = zip(merged[index], args[0], places, strict=True)
            args = (torch.stack([merge(states, own) for merge, states, own in samples]), *args[1:])
        return args, kwargs

    first = 0 if cut else min(dropped, default=len(view.layers))
    layers = list(enumerate(view.layers))[first:]
    handles = [layer.register_forward_pre_hook(partial(change, index), with_kwargs=True) for index, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def traces(model):
    """Everything that pruning could leave on a model."""
    return [
        (type(part), sorted(part.__dict__), len(part._forward_pre_hooks), len(part._forward_hooks))
        for part in model.modules()
    ]
