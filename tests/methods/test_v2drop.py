"""V2Drop against its formula, written again over the states that a model's layers really give."""

import numpy as np
import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Schedule, Stage, VisualLayout
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.selectors.fixed import Given
from feathervlm.methods import V2Drop, get

AT, KEEP, LAST = (1, 3, 5), 0.4, 3


def layout(ids):
    """Where the pictures of one prompt are."""
    mask = ids == tiny.IMAGE
    return VisualLayout(mask, [[(1, tiny.SIDE, tiny.SIDE)] * (int(mask.sum()) // tiny.SIDE**2)])


def states(model, inputs, kept, at):
    """Those that enter every layer, (batch, sequence, dim), under the choices of stages before `at`."""
    stages = [(layer, choice) for layer, choice in zip(AT, kept, strict=False) if layer < at]
    frozen = Schedule(*(Stage(layer, Given(choice)) for layer, choice in stages))
    with torch.no_grad(), feathervlm.prune(model, frozen, layout=layout(inputs["input_ids"])):
        seen = []
        handles = [
            layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True)
            for layer in model.model.layers
        ]
        model(**inputs, use_cache=False)
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_v2drop_by_hand(images, seed):
    model = tiny.llama()
    ids = torch.tensor([tiny.prompt(images, seed=seed)])
    inputs, visual = {"input_ids": ids}, (ids[0] == tiny.IMAGE).nonzero()[:, 0].tolist()
    per_image, total = tiny.SIDE**2, images * tiny.SIDE**2
    method = V2Drop(AT, KEEP, LAST)
    with torch.no_grad(), feathervlm.prune(model, method, layout=layout(ids)) as pruning:
        model(**inputs)
    report = pruning.report
    found = [[stage.kept[0]] for stage in report.stages]
    left = list(range(total))
    for number, (at, stage) in enumerate(zip(AT, report.stages, strict=True)):
        seen = states(model, inputs, found, at)
        gone = {visual[token] for token in range(total) if token not in left}
        rows = [place for place in range(ids.shape[1]) if place not in gone]
        index = [rows.index(visual[token]) for token in left]
        after, before = (seen[layer][0].numpy().astype(np.float64) for layer in (at, at - 1))
        # The layer before saw the tokens that are left now, and after it nothing has left yet.
        moved = {token: np.linalg.norm(after[row] - before[row]) for token, row in zip(left, index, strict=True)}
        np.testing.assert_allclose(stage.scores[0].numpy(), [moved[token] for token in left], rtol=1e-5)
        kept = []
        for image in range(images):
            mine = [token for token in left if token // per_image == image]
            count = LAST if number == len(AT) - 1 else max(int(len(mine) * KEEP), 1)
            kept += sorted(sorted(mine, key=lambda token: (-moved[token], token))[:count])
        assert stage.kept[0].tolist() == kept
        left = kept


def test_known_counts():
    """Of LLaVA's 576 tokens: 288, 144, and a single one."""
    image, counts = ImageTokens(picture_of((1, 24, 24)), 576), []
    for stage in get("v2drop").schedule():
        counts.append(stage.select.size(image))
        image = ImageTokens(image.picture, counts[-1])
    assert counts == [288, 144, 1]


@pytest.mark.parametrize("spec", ["v2drop:keep=0", "v2drop:keep=2", "v2drop:last=0", "v2drop:layers=3"])
def test_bad_parameters_are_refused(spec):
    with pytest.raises(PruningError):
        get(spec)
