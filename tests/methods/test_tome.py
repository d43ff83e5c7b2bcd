"""ToMe against matching in plain Python and a tower that is run by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import feathervlm
import tiny_models as tiny
from feathervlm import Unprunable, methods
from feathervlm.core import PruningError
from feathervlm.core.encoder.bipartite import BipartiteMerging, bipartite
from feathervlm.core.selectors.groups import OnePerGroup
from feathervlm.methods.describe import describe
from methods.towers import matches, members, run


@given(st.data())
@settings(deadline=None)
def test_matching_is_that_of_one_pair_at_a_time(data):
    protected = data.draw(st.integers(0, 1))
    tokens = data.draw(st.integers(2, 24))
    merges = data.draw(st.integers(0, (tokens - protected) // 2))
    levels = data.draw(st.sampled_from([2, 3, 10**6]))  # few levels make many ties
    seed = data.draw(st.integers(0, 10**6))
    metric = torch.randint(-levels, levels + 1, (3, tokens, 4), generator=torch.Generator().manual_seed(seed)).float()
    place = bipartite(metric, merges, protected)
    for image in range(3):
        groups = members(place[image])
        assert [sorted(group) for group in matches(metric[image], merges, protected)] == groups
        assert not protected or groups[0] == [0]


@given(st.data())
@settings(deadline=None)
def test_matching_inside_windows_is_that_of_one_pair_at_a_time(data):
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) > 1))
    window = [number for number, length in enumerate(lengths, start=3) for _ in range(length)]
    merges = data.draw(st.integers(0, len(window)))
    levels = data.draw(st.sampled_from([2, 10**6]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    metric = torch.randint(-levels, levels + 1, (1, len(window), 4), generator=generator).float()
    groups = members(bipartite(metric, merges, 0, torch.tensor(window))[0])
    assert [sorted(group) for group in matches(metric[0], merges, 0, window)] == groups
    assert [window[group[0]] for group in groups] == sorted(window[group[0]] for group in groups)
    if len(lengths) == 1 and merges <= len(window) // 2:
        assert groups == members(bipartite(metric, merges)[0])


def by_hand(method, tower, pixels, protected, depth):
    plan = method.schedule().encoder.plan(depth, tiny.SIDE**2)
    left = {layer: count + protected for layer, count in plan.items()}

    def between(layer, keys):
        return matches(keys.detach(), len(keys) - left[layer], protected) if layer in left else None

    return run(tower, pixels, between=between, proportional=method.proportional)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize(
    "method",
    [
        methods.ToMe(keep=0.4),
        methods.ToMe(keep=0.4, proportional=False),
        methods.ToMe(keep=0.1, stop=-1),
        methods.ToMe(keep=0.6, start=2, stop=3),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_tower_is_the_one_run_by_hand(tower, method, attention):
    llava = tiny.llava(tower=tower, attention=attention, depth=5).double()
    pixels = torch.stack([tiny.pixel([1, 2, 3], image) for image in range(3)]).double()
    protected = int(tower == "clip")
    plain = llava.model.get_image_features(pixels)
    with feathervlm.prune(llava, method):
        output = llava.model.get_image_features(pixels, output_hidden_states=True)
    for image in range(3):
        states, _ = by_hand(method, llava.model.vision_tower, pixels[image : image + 1], protected, 5)
        for found, wanted in zip(output.hidden_states, states, strict=True):
            torch.testing.assert_close(found[image], wanted, atol=1e-5, rtol=0)
        features = llava.model.multi_modal_projector(states[-2][protected:])
        torch.testing.assert_close(output.pooler_output[image], features, atol=1e-5, rtol=0)
        assert (plain.pooler_output[image] - features).abs().max() > 1e-2


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_layers_see_as_many_tokens_as_by_hand(tower):
    llava, method, prompt = (
        tiny.llava(tower=tower, depth=5),
        methods.ToMe(keep=0.4),
        tiny.prompt(2, seed=1),
    )
    inputs, protected, seen = tiny.batch(prompt), int(tower == "clip"), {}
    handles = [
        part.register_forward_hook(lambda module, args, output, kind=kind: seen.setdefault(kind, []).append(output))
        for layer in llava.model.vision_tower.encoder.layers
        for kind, part in (("attention", layer.self_attn.q_proj), ("mlp", layer.mlp.fc1))
    ]
    with feathervlm.prune(llava, method) as pruning:
        llava(**inputs)
    for handle in handles:
        handle.remove()
    _, counts = by_hand(method, llava.model.vision_tower, inputs["pixel_values"][:1], protected, 5)
    assert [part.shape[1] for part in seen["attention"]] == [looked for looked, _ in counts]
    assert [part.shape[1] for part in seen["mlp"]] == [passed for _, passed in counts]
    assert pruning.report.encoder_tokens == [[looked for looked, _ in counts]]
    assert counts[-1] == (14 + protected, 14 + protected)
    assert pruning.report.tokens_per_layer == [[28] * tiny.LAYERS]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_the_first_of_every_group_of_equal_features_enters_the_language_model(tower):
    llava, prompt = tiny.llava(tower=tower, depth=5), tiny.prompt(2, seed=2)
    inputs = tiny.batch(prompt)
    with feathervlm.prune(llava, methods.ToMe(keep=0.4)) as pruning:
        features = llava.model.get_image_features(inputs["pixel_values"]).pooler_output
        llava(**inputs)
    expected = []
    for image, tokens in enumerate(features):
        for number, token in enumerate(tokens):
            if not any(torch.equal(token, other) for other in tokens[:number]):
                expected.append(image * tiny.SIDE**2 + number)
    assert pruning.report.stages[0].kept[0].tolist() == expected
    assert len(expected) == 28


def test_the_number_of_merges_is_the_smallest_that_gets_there():
    assert BipartiteMerging(keep=0.5).plan(5, 36) == {0: 31, 1: 26, 2: 21, 3: 18}
    assert BipartiteMerging(keep=1.0).plan(5, 36) == {}
    assert BipartiteMerging(keep=0.14, start=1, stop=-1).plan(4, 36) == {1: 20, 2: 10, 3: 5}
    assert BipartiteMerging(keep=0.97, start=0.5).plan(24, 576) == {
        layer: max(576 - 2 * merges, 558) for merges, layer in enumerate(range(12, 21), start=1)
    }
    with pytest.raises(Unprunable, match=r"36 patches cannot be brought down to keep=0\.1 \(3\) in 3 layers"):
        BipartiteMerging(keep=0.1, start=1, stop=-1).plan(4, 36)
    with pytest.raises(Unprunable, match="No layer of 2 lies from start=1 to stop=-2"):
        BipartiteMerging(start=1).plan(2, 36)
    with pytest.raises(Unprunable, match="Layer 7 is beyond the 5 layers"):
        BipartiteMerging(stop=7).plan(5, 36)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tome:keep=0", "keep=0"),
        ("tome:keep=196", "keep=196"),
        ("tome:start=1.5", "start=1.5"),
        ("tome:stop=last", "stop='last'"),
        ("tome:proportional=2", "proportional=2"),
    ],
)
def test_bad_parameters_are_refused(spec, says):
    with pytest.raises(PruningError, match=says):
        methods.get(spec)


def test_the_budget_is_that_of_the_language_model():
    assert methods.ToMe(keep=0.25).schedule().average_tokens([(1, 24, 24)], 32) == 144
    assert methods.ToMe().solve(192, [(1, 24, 24)], 32).keep == pytest.approx(1 / 3, abs=1e-3)
    assert OnePerGroup(0.5).size(None) is None


def test_the_catalogue_tells_what_the_encoder_does():
    description = describe(methods.ToMe(keep=0.25))
    assert description["encoder"][0] == 576
    assert description["encoder"][-1] == 144
    assert description["needs"] == ["which patches the vision encoder has merged"]
    assert describe(methods.AiluRus())["encoder"] == [576, 576] + [288] * 22
    assert describe(methods.FastV())["encoder"] is None
