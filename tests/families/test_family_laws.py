"""The laws of pruning on every family: tiny random models, prompts with two, one and no pictures in one batch."""

from functools import cache

import pytest
import torch

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES, WAYS, with_attention, with_some
from feathervlm import LastTokenAttention, Schedule, Stage, Top, Unprunable, methods
from feathervlm.engine.decoder import DecoderView
from feathervlm.families import FAMILIES
from laws import frozen, hidden, traces
from method_cases import METHODS, in_gate, representatives, selected

TOKENS = 3


@pytest.fixture
def case(name):
    return FAMILY_CASES[name]


EVERY = pytest.mark.parametrize("name", FAMILY_CASES)
IN_TURN = pytest.mark.parametrize(
    "name", selected(in_gate(place % 2 == 0, name) for place, name in enumerate(FAMILY_CASES))
)


def ways(case):
    """Methods that ask for scores, that do not, that merge, that move positions; some before the first layer."""
    first, second = case.layers
    return {
        "feather": methods.Feather(layers=(first, second), keep=0.5, stride=2),
        "uniform-0": methods.Uniform(layer=0, stride=2),
        "random": methods.RandomKeep(layer=1, keep=0.4),
        "pool": methods.AveragePool(layer=5, stride=2),
        "shuffled": methods.ShuffledPositions(),
        "cut": Schedule(Stage(first, Top(LastTokenAttention(rope=False), 0.5), cache="all")),
        "ivc-prune": methods.IVCPrune(layer=first, keep=0.5),
    }


def run(model, inputs, tokens=0):
    """Logits of the prompt, or generated tokens and their logits."""
    with torch.no_grad():
        if not tokens:
            return model(**inputs).logits
        out = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return out.sequences[:, -tokens:], torch.stack(out.logits, 1)


@cache
def unpruned(case, attention):
    return run(case.model(attention), case.inputs(*case.prompts()))


@cache
def pruned(case, attention, way):
    """Logits of the prompts, and the report."""
    model = case.model(attention)
    with feathervlm.prune(model, ways(case)[way]) as pruning:
        return run(model, case.inputs(*case.prompts())), pruning.report


@cache
def generated(case, attention, way):
    """New tokens, their logits, and the report."""
    model = case.model(attention)
    with feathervlm.prune(model, ways(case)[way]) as pruning:
        return *run(model, case.inputs(*case.prompts()), TOKENS), pruning.report


def attended(case):
    return case.inputs(*case.prompts())["attention_mask"].bool()


@pytest.mark.parametrize(("name", "attention", "keep"), with_attention(["feather", "uniform-0"]))
def test_keeping_everything_changes_no_bit(case, attention, keep):
    whole = {
        "feather": methods.Feather(layers=case.layers, keep=1.0),
        "uniform-0": methods.Uniform(layer=0, stride=1),
    }
    model, inputs = case.model(attention), case.inputs(*case.prompts())
    logits, (sequences, scores) = unpruned(case, attention), run(model, inputs, TOKENS - 1)
    with feathervlm.prune(model, whole[keep]):
        assert torch.equal(run(model, inputs)[attended(case)], logits[attended(case)])
        again, steps = run(model, inputs, TOKENS - 1)
    assert torch.equal(again, sequences)
    assert torch.equal(steps, scores)


@pytest.mark.parametrize(("name", "attention", "way"), with_attention(["feather", "uniform-0", "random", "pool"]))
def test_pruning_changes_logits_and_counts_hold(case, attention, way):
    (logits, report), full = pruned(case, attention, way), unpruned(case, attention)
    with_pictures = [i for i, (_, shots) in enumerate(case.prompts()) if shots]
    for sample in with_pictures:
        assert (logits[sample, -1] - full[sample, -1]).abs().max() > 1e-3
    for sample, (ids, shots) in enumerate(case.prompts()):
        placeholders = sum(shot.ids.count(shot.token) for shot in shots)
        assert report.record.layout.counts[sample] <= placeholders
        assert ids.count(tiny.IMAGE) <= placeholders
        assert len(report.record.layout.pictures[sample]) == len(shots)
        if not shots:
            torch.testing.assert_close(logits[sample, -1], full[sample, -1], atol=case.tolerance, rtol=1e-3)
    for one, two in zip(report.stages, generated(case, attention, way)[-1].stages, strict=True):
        assert [kept.tolist() for kept in one.kept] == [kept.tolist() for kept in two.kept]
        assert all(
            len(kept) < total for kept, total in zip(one.kept, report.record.layout.counts, strict=True) if total
        )


@pytest.mark.parametrize(
    ("name", "attention", "way"),
    with_attention(WAYS),
)
def test_a_batch_is_the_same_as_one_by_one(case, attention, way):
    if way == "ivc-prune" and "lfm3" in case.name:
        pytest.skip("the layer behind the cut carries a state and is given no rotation")
    model = case.model(attention)
    (logits, report), (sequences, scores, _) = (each(case, attention, way) for each in (pruned, generated))
    for sample, prompt in enumerate(case.prompts()):
        inputs = case.inputs(prompt)
        with feathervlm.prune(model, ways(case)[way]) as pruning:
            tokens, steps = run(model, inputs, TOKENS)
        torch.testing.assert_close(steps[0, 0], logits[sample, -1], atol=case.tolerance, rtol=1e-3)
        assert torch.equal(tokens[0], sequences[sample])
        torch.testing.assert_close(steps[0], scores[sample], atol=case.tolerance, rtol=1e-3)
        if prompt[1]:
            for one, many in zip(pruning.report.stages, report.stages, strict=True):
                assert one.kept[0].tolist() == many.kept[sample].tolist()


@pytest.mark.parametrize(("name", "attention", "way"), with_attention(WAYS[:5]))
def test_decoding_with_a_cache_is_a_prefill_of_everything(case, attention, way):
    model = case.model(attention)
    sequences, scores, report = generated(case, attention, way)
    extra = sequences[:, :-1].tolist()
    inputs = case.inputs(*case.prompts(), extra=extra)
    with feathervlm.prune(model, frozen(ways(case)[way], report)), torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(logits[:, -TOKENS:], scores, atol=case.tolerance, rtol=1e-3)


@pytest.mark.parametrize(("name", "attention", "way"), with_attention(["feather", "random"]))
def test_pruning_is_hiding_tokens_from_later_layers(case, attention, way):
    if case.state:
        pytest.skip("a layer that carries a state has no mask to hide a token with")
    model = case.model(attention)
    logits, report = pruned(case, attention, way)
    layout, there = report.record.layout, attended(case)
    if attention == "eager" and "llama4" in case.name:
        pytest.skip("the mask of its eager attention is made inside")
    with hidden(model, layout.mask, there, report, ways(case)[way]):
        expected = run(model, case.inputs(*case.prompts()))
    text = there & ~layout.mask
    torch.testing.assert_close(logits[text], expected[text], atol=case.tolerance, rtol=1e-3)


@pytest.mark.parametrize(("name", "attention", "way"), with_attention(["cut"]))
def test_what_early_layers_forget_is_hidden_from_the_answer(case, attention, way):
    if case.state:
        pytest.skip("a layer that carries a state has no mask to hide a token with")
    if attention == "eager" and "llama4" in case.name:
        pytest.skip("the mask of its eager attention is made inside")
    model = case.model(attention)
    sequences, scores, report = generated(case, attention, way)
    inputs = case.inputs(*case.prompts(), extra=sequences[:, :-1].tolist())
    visual = torch.nn.functional.pad(report.record.layout.mask, (0, TOKENS - 1))
    answer = visual.shape[1] - TOKENS + 1
    with hidden(model, visual, inputs["attention_mask"], report, ways(case)[way], answer):
        logits = run(model, {**inputs, "use_cache": False})
    torch.testing.assert_close(logits[:, -TOKENS:], scores, atol=case.tolerance, rtol=1e-3)


def exchange(model, taken):
    """Let the unpruned model give each token the position ids of the one that it has taken over from."""

    def hook(module, args, kwargs):
        given = {**dict(zip(("x", "position_ids", "layer_type"), args, strict=False)), **kwargs}
        axes = given["position_ids"].shape[:-2]
        ids = given["position_ids"].expand(*axes, *taken.shape).take_along_dim(taken.expand(*axes, -1, -1), -1)
        return (given.pop("x"),), {**given, "position_ids": ids}

    parts = [part for name, part in DecoderView(model).decoder.named_children() if name.startswith("rotary_emb")]
    return [part.register_forward_pre_hook(hook, with_kwargs=True) for part in parts]


@IN_TURN
def test_shuffled_positions_are_permuted_position_ids(case):
    model, (logits, report) = case.model(), pruned(case, "sdpa", "shuffled")
    layout, slots = report.record.layout, report.record.layout.positions()
    taken = torch.arange(layout.mask.shape[1]).repeat(len(slots), 1)
    draws = torch.rand(layout.width, generator=torch.Generator().manual_seed(0))
    for sample, pictures in enumerate(layout.pictures):
        start = 0
        for picture in pictures:
            here = range(start, start := start + sum(plane.size for plane in picture))
            takers = sorted(here, key=lambda token: float(draws[token]))
            taken[sample, slots[sample, takers]] = slots[sample, list(here)]
    handles = exchange(model, taken)
    try:
        expected = run(model, case.inputs(*case.prompts()))
    finally:
        for handle in handles:
            handle.remove()
    there = attended(case)
    torch.testing.assert_close(logits[there], expected[there], atol=case.tolerance, rtol=1e-3)
    changed = (logits[0, -1] - unpruned(case, "sdpa")[0, -1]).abs().max() > 1e-3
    assert changed == case.rotates


@pytest.mark.parametrize(("name", "rope"), with_some([True, False], [True, False], 2))
def test_scores_are_those_of_eager_attention(case, rope):
    """With rotation as the model has it; without, as if every rotation were by nothing."""
    model, inputs = case.model("eager"), case.inputs(*case.prompts())
    method = methods.FastV(layer=case.layers[0], keep=0.5, rope=rope, over="all")
    with feathervlm.prune(model, method) as pruning:
        run(model, inputs)
    report, seen = pruning.report, []
    at = next((int(word) for note in report.notes for word in note.replace(",", " ").split() if word.isdigit()), None)
    layer = case.layers[0] - 1 if at is None else at
    module = pruning.decoder.attention_module(layer)
    unrotated = [] if rope else [module.register_forward_pre_hook(still, with_kwargs=True)]
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    try:
        run(model, inputs)
    finally:
        for each in (handle, *unrotated):
            each.remove()
    weights = seen[0][:, :, -1].float().mean(1)
    for sample, mask in enumerate(report.record.layout.mask):
        torch.testing.assert_close(report.stages[0].scores[sample], weights[sample][mask], atol=1e-5, rtol=1e-3)


@IN_TURN
def test_scores_of_the_layer_about_to_run_are_its_own(case):
    """They are made from its projections before it runs, whatever else these bring (gates, norms, fused weights)."""
    model, inputs = case.model("eager"), case.inputs(*case.prompts())
    with feathervlm.prune(model, methods.FastV(layer=case.layers[0])) as pruning:
        layer = pruning.decoder.scoring_layer(case.layers[0] - 1)[0]
        module = pruning.decoder.attention_module(layer)
    stage = feathervlm.Stage(layer, feathervlm.Top(feathervlm.LastTokenAttention(layer="K", over="all"), keep=0.5))
    try:
        pruning = feathervlm.prune(model, feathervlm.Schedule(stage))
    except Unprunable as error:
        pytest.skip(str(error))
    with pruning:
        run(model, inputs)
    seen = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    try:
        run(model, inputs)
    finally:
        handle.remove()
    weights = seen[0][:, :, -1].float().mean(1)
    for sample, mask in enumerate(pruning.report.record.layout.mask):
        scores = pruning.report.stages[0].scores[sample]
        torch.testing.assert_close(scores, weights[sample][mask], atol=1e-5, rtol=1e-3)


def still(module, args, kwargs):
    """Positions all the same: no rotation is left between any two."""
    tables = kwargs["position_embeddings"]
    if isinstance(tables, tuple):
        kwargs["position_embeddings"] = (torch.ones_like(tables[0]), torch.zeros_like(tables[1]))
    return args, kwargs


def fail(*args):
    raise KeyError("inside")


@EVERY
def test_the_model_is_untouched_afterwards(case):
    model, inputs = case.model(), case.inputs(case.prompts()[0])
    run(model, inputs)
    before = traces(model)
    handle = model.get_decoder().register_forward_hook(fail)
    with pytest.raises(KeyError, match="inside"), feathervlm.prune(model, ways(case)["feather"]):
        run(model, inputs, 2)
    handle.remove()
    assert traces(model) == before


@pytest.mark.parametrize(("name", "row"), with_some(METHODS, representatives(), 5))
def test_every_method_runs_or_is_refused_in_words(case, row):
    model, inputs = case.model(), case.inputs(*case.prompts())
    method = METHODS[row]
    if row in case.refuses:
        with pytest.raises(Unprunable, match=case.refuses[row]), feathervlm.prune(model, method):
            run(model, inputs)
        return
    with feathervlm.prune(model, method) as pruning:
        logits = run(model, inputs)
    assert pruning.report.pruned
    changed = (logits[0, -1] - unpruned(case, "sdpa")[0, -1]).abs().max() > 1e-4
    assert changed or (row == "shuffled-positions" and not case.rotates)


STATIC = ["feather", "random", "cut"]


@pytest.mark.parametrize(("name", "way"), with_some(STATIC, STATIC, 3))
def test_a_static_cache_gives_the_same_or_is_refused(case, way):
    model, inputs = case.model(), case.inputs(*case.prompts())
    assert ("static" in FAMILIES[model.config.model_type].caches) == case.static
    sequences, scores, _ = generated(case, "sdpa", way)
    with feathervlm.prune(model, ways(case)[way]), torch.no_grad():
        options = {"cache_implementation": "static", "disable_compile": True, "do_sample": False}
        options |= {"max_new_tokens": TOKENS, "output_logits": True, "return_dict_in_generate": True}
        if not case.static:
            with pytest.raises(Unprunable, match="sliding static caches are not"):
                model.generate(**inputs, **options)
            return
        out = model.generate(**inputs, **options)
    assert torch.equal(out.sequences[:, -TOKENS:], sequences)
    torch.testing.assert_close(torch.stack(out.logits, 1), scores, atol=case.tolerance, rtol=1e-3)


def test_every_family_has_a_case():
    shown = {case.model().config.model_type for case in FAMILY_CASES.values()}
    kin = [set(family.model_types) for family in set(FAMILIES.values())]
    assert [types for types in kin if not types & shown] == []
