"""What several engine tests need: generation with logits, and the schedule that repeats what a report says."""

from contextlib import contextmanager
from functools import partial

import torch
import transformers

from feathervlm import Schedule, Stage
from feathervlm.core import Given
from feathervlm.core.layout import VisualLayout

TOLERANCE = 2e-4
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


def generate(model, inputs, tokens=6, **options):
    """Greedy generation: (new tokens, their logits, cache)."""
    options = {"do_sample": False, "output_logits": True, **options}
    out = model.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values


def frozen(*reports):
    """The schedule that keeps what was kept of these turns' images, one turn after the other (batch 1)."""
    stages = []
    for stage in zip(*(report.stages for report in reports), strict=True):
        kept, start = [], 0
        for turn, report in zip(stage, reports, strict=True):
            kept.append(turn.kept[0] + start)
            start += report.record.layout.counts[0]
        stages.append(Stage(stage[0].layer, Given([torch.cat(kept)])))
    return Schedule(*stages)


def layout_of(ids, image, side):
    """The layout of prompts whose visual tokens are runs of the id `image`, each a square."""
    mask = ids == image
    return VisualLayout(mask, [[(1, side, side)] * (int(row.sum()) // side**2) for row in mask])


@contextmanager
def hidden(model, visual, attended, report):
    """Let the unpruned model ignore, from each stage's layer on, the tokens that a report says were dropped."""
    dropped = {}
    for stage in report.stages:
        dropped[stage.layer] = visual.clone()
        for sample, kept in enumerate(stage.kept):
            dropped[stage.layer][sample, visual[sample].nonzero()[:, 0][kept]] = False
    causal = torch.ones(visual.shape[1], visual.shape[1], dtype=torch.bool).tril()
    eager = model.get_decoder().config._attn_implementation == "eager"

    def hide(stage, module, args, kwargs):
        allowed = causal & (~dropped[stage] & attended.bool())[:, None, None, :]
        # A row with nothing to see would not be finite; nobody reads what a dropped token makes of itself.
        allowed = allowed | torch.eye(len(causal), dtype=torch.bool)
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if eager else allowed
        return args, {**kwargs, "attention_mask": mask}

    handles = []
    for index, layer in enumerate(model.get_decoder().layers):
        stage = max((at for at in dropped if at <= index), default=None)
        if stage is not None:
            handles.append(layer.register_forward_pre_hook(partial(hide, stage), with_kwargs=True))
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
