"""Methods whose tokens wait, are frozen, or leave the cache only, against each written again on plain tensors."""

from functools import cache

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, VisualLayout
from feathervlm.methods import (
    Feather,
    LateInjection,
    LvlmCsp,
    Reroute,
    ShortV,
    SkipKV,
    SwiftVLM,
    VisiPruner,
    VScan,
    get,
)
from naive_modes import Naive

SIDE, BEFORE, AFTER, DEPTH = 6, 3, 7, 6
TOTAL, IMAGE = SIDE**2, range(BEFORE, BEFORE + SIDE**2)


@cache
def model():
    return tiny.llama()


def embeddings(seed):
    return torch.randn(1, BEFORE + TOTAL + AFTER, 64, generator=torch.Generator().manual_seed(seed))


def layout():
    mask = torch.zeros(1, BEFORE + TOTAL + AFTER, dtype=torch.bool)
    mask[0, list(IMAGE)] = True
    return VisualLayout(mask, [[(1, SIDE, SIDE)]])


def reroute(naive, keep, form):
    shares = [1, 1, 0.5, 0.25] if form == "pyramid" else [1] * 4
    chosen, layers = [], [1, 2, 4, 5]
    naive.run(range(layers[0]))
    for number, (at, end) in enumerate(zip(layers, [*layers[1:], DEPTH], strict=True)):
        weights, _ = naive.attention(at, over="all")
        kept = naive.best(weights.mean(0), int(TOTAL * (keep * shares[number])))
        naive.leave(kept, "wait" if number < 3 else "drop")
        naive.run(range(at, end))
        chosen.append(sorted(kept))
    return chosen


def swift(naive):
    chosen = []
    naive.run(range(1))
    for at, end, last in ((1, 3, False), (3, 5, False), (5, 6, True)):
        kept = naive.best(naive.attention(at)[0].mean(0), 9)
        naive.leave(kept, "drop" if last else "wait", None if last else 4)
        naive.run(range(at, end))
        chosen.append(sorted(kept))
    return chosen


def late(naive):
    naive.leave(set(), "wait")
    naive.run(range(2))
    kept = naive.best(naive.attention(2)[0].mean(0), 18)
    naive.leave(kept)
    naive.run(range(2, DEPTH))
    return [[], sorted(kept)]


def contributions(naive):
    naive.run(range(2))
    weights, values = naive.attention(2, over="all")
    parts = (weights[..., None] * values).transpose(0, 1).flatten(1)  # heads side by side
    naive.run(range(2, 3))
    kept = naive.best(parts.norm(dim=1), 9)
    naive.leave(kept)
    naive.run(range(3, DEPTH))
    return [sorted(kept)]


def shortv(naive):
    naive.run(range(1))
    naive.leave(set(), "freeze")
    naive.run(range(1, 3))
    naive.leave(set(range(TOTAL)))
    naive.run(range(3, 4))
    naive.leave(set(), "freeze")
    naive.run(range(4, DEPTH))
    return [[], list(range(TOTAL)), []]


def feather(naive, how):
    grid = {SIDE * row + col for row in range(0, SIDE, 3) for col in range(0, SIDE, 3)}
    naive.run(range(1))
    scores = naive.attention(1, rope=False)[0].mean(0)
    naive.run(range(1, 2))
    first = naive.best(scores, int(TOTAL * 0.4)) | grid
    naive.leave(first, how)
    naive.run(range(2, 3))
    if how == "wait":
        naive.run(range(3, 4))
        scores = naive.attention(4, rope=False)[0].mean(0)
    else:
        scores = naive.attention(3, rope=False)[0].mean(0)
        naive.run(range(3, 4))
    second = naive.best(scores, int(TOTAL * 0.4**2))
    naive.leave(second, "drop" if how == "wait" else how)
    naive.run(range(4, DEPTH))
    return [sorted(first), sorted(second)]


RUNS = {
    "reroute": (Reroute((1, 2, 4, 5), 0.5), lambda naive: reroute(naive, 0.5, "pyramid")),
    "reroute-flat": (Reroute((1, 2, 4, 5), 0.3, "flat"), lambda naive: reroute(naive, 0.3, "flat")),
    "swiftvlm": (SwiftVLM((1, 3, 5), 0.25, 4), swift),
    "late-injection": (LateInjection(2, 0.5), late),
    "visipruner": (VisiPruner(3, 0.25), contributions),
    "shortv": (ShortV((1, 3, 4)), shortv),
    "feather-wait": (Feather((2, 4), 0.4, leave="wait"), lambda naive: feather(naive, "wait")),
    "feather-freeze": (Feather((2, 4), 0.4, leave="freeze"), lambda naive: feather(naive, "freeze")),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_a_method_by_hand(name, seed):
    method, by_hand = RUNS[name]
    llama, inputs = model(), embeddings(seed)
    with feathervlm.prune(llama, method, layout=layout()) as pruning:
        logits = llama(inputs_embeds=inputs).logits[0, -1]
    naive = Naive(llama, inputs, IMAGE)
    assert [stage.kept[0].tolist() for stage in pruning.report.stages] == by_hand(naive)
    torch.testing.assert_close(logits, naive.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_clusters_run_first_then_all_tokens_then_the_best():
    llama, inputs = model(), embeddings(0)
    with feathervlm.prune(llama, LvlmCsp((0, 2, 4), groups=9, keep=0.25), layout=layout()) as pruning:
        logits = llama(inputs_embeds=inputs).logits[0, -1]
    naive = Naive(llama, inputs, IMAGE)
    naive.leave(set(), "wait", 9)
    naive.run(range(2))
    naive.leave(set(range(TOTAL)))
    naive.run(range(2, 3))
    scores = naive.attention(3)[0].mean(0)
    naive.run(range(3, 4))
    kept = naive.best(scores, 9)
    naive.leave(kept)
    naive.run(range(4, DEPTH))
    report = pruning.report
    assert [stage.kept[0].tolist() for stage in report.stages] == [[], list(range(TOTAL)), sorted(kept)]
    assert report.tokens_per_layer == [[9, 9, 36, 36, 9, 9]]
    assert report.waiting_per_layer == [[36, 36, 0, 0, 0, 0]]
    torch.testing.assert_close(logits, naive.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_skip_kv_changes_only_what_is_generated():
    llama, inputs = model(), embeddings(1)
    plain = llama(inputs_embeds=inputs).logits
    with feathervlm.prune(llama, SkipKV(0.25), layout=layout()) as pruning:
        cut = llama(inputs_embeds=inputs)
    naive = Naive(llama, inputs, IMAGE)
    naive.run(range(DEPTH - 1))
    kept = sorted(naive.best(naive.attention(DEPTH - 1)[0].mean(0), 9))
    assert torch.equal(cut.logits, plain)
    assert pruning.report.stages[0].kept[0].tolist() == kept
    positions = [*range(BEFORE), *(BEFORE + token for token in kept), *range(IMAGE.stop, inputs.shape[1])]
    for layer in cut.past_key_values.layers:
        assert layer.columns(0, inputs.device)[0][0].tolist() == positions
        assert layer.keys.shape[2] == len(positions)


def test_vscan_chooses_as_many_again_from_all_tokens():
    dropping, waiting = VScan((0, 3), keep=18), VScan((0, 3), keep=18, leave="wait")
    grids = [(1, SIDE, SIDE)]
    assert waiting.schedule().tokens_per_layer(grids, DEPTH) == dropping.schedule().tokens_per_layer(grids, DEPTH)
    assert [tokens.waiting for tokens in waiting.schedule().tokens_by_mode(grids, DEPTH)] == [18] * 3 + [0] * 3
    freezing = VScan((0, 3), keep=18, leave="freeze").schedule()
    assert [tokens.frozen for tokens in freezing.tokens_by_mode(grids, DEPTH)] == [18] * 3 + [30] * 3
    with pytest.raises(PruningError, match="takes positions='preserve' only"):
        VScan((0, 3), leave="wait", positions="renumber")


def test_a_new_parameter_that_is_not_set_changes_no_fingerprint():
    assert str(get("feather")) == "feather"
    assert Feather().fingerprint() == Feather(leave="drop").fingerprint() != Feather(leave="freeze").fingerprint()
    assert "leave" not in Feather().schedule().format.to_json(Feather().schedule())
    text = Feather(leave="freeze").schedule().format.to_json(Feather(leave="freeze").schedule())
    assert Feather().schedule().format.from_json(text) == Feather(leave="freeze").schedule()
