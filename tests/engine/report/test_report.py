"""The report says what happened, in numbers that can be worked out by hand."""

import json
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, PruningError, Schedule, Stage, Top, methods
from feathervlm.core.cost import decoder_layer, flops, kv_numbers
from feathervlm.engine.report.report import Report
from laws import generate

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
TOTAL = tiny.SIDE**2
DEPTH = tiny.LAYERS


@cache
def model(text="llama"):
    return tiny.llava(text)


@torch.no_grad()
def report_of(llava, method, *prompts):
    with feathervlm.prune(llava, method) as pruning:
        llava(**tiny.batch(*prompts))
    return pruning.report


def numbers(cache_):
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache_.layers)


def test_uniform_sampling_by_hand():
    report = report_of(model(), methods.Uniform(layer=2, stride=2), tiny.prompt(1, seed=1))
    even = [row * 6 + col for row in (0, 2, 4) for col in (0, 2, 4)]
    assert report.pruned
    assert report.method == "uniform:layer=2"
    assert [stage.layer for stage in report.stages] == [2]
    assert report.stages[0].kept[0].tolist() == even
    assert report.stages[0].kept[0].dtype == torch.long
    assert report.stages[0].scores is None
    assert report.tokens_per_layer == [[36, 36, 9, 9, 9, 9]]
    assert report.average_tokens == 18
    assert report.grid().tolist() == [[[not (row % 2 or col % 2) for col in range(6)] for row in range(6)]]
    assert report.selection_seconds >= 0
    assert report.notes == []


def test_every_sample_has_the_flops_that_it_has_alone():
    prompts = [
        tiny.prompt(1, seed=2),
        tiny.prompt(2, seed=3, after=11),
        tiny.prompt(1, seed=4, before=9),
    ]
    together = report_of(model(), FEATHER, *prompts)
    alone = [report_of(model(), FEATHER, prompt).flops_ratio for prompt in prompts]
    assert together.flops_ratios == pytest.approx(alone, rel=1e-12)
    assert len(set(alone)) == 3
    assert min(alone) < together.flops_ratio < max(alone)


@pytest.mark.parametrize("text", ["llama", "qwen3", "phi3", "mistral"])
def test_flops_are_those_of_the_models_own_matrices(text):
    llava, prompt = model(text), tiny.prompt(1, seed=2)
    report = report_of(llava, FEATHER, prompt)
    words = len(prompt) - TOTAL
    layer = decoder_layer(hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
    layer = replace(layer, window=24 if text == "mistral" else None)
    tokens = [words + visual for visual in report.tokens_per_layer[0]]
    expected = flops([layer] * DEPTH, tokens) / flops([layer] * DEPTH, [len(prompt)] * DEPTH)
    assert report.flops_ratio == pytest.approx(expected, rel=1e-12)
    expected = kv_numbers([layer] * DEPTH, tokens) / kv_numbers([layer] * DEPTH, [len(prompt)] * DEPTH)
    assert report.kv_bytes_ratio == pytest.approx(expected, rel=1e-12)
    assert report.flops_ratio < 1


@pytest.mark.parametrize("text", ["llama", "qwen3", "phi3", "mistral"])
@pytest.mark.parametrize("images", [1, 2])
def test_the_kv_ratio_is_that_of_the_real_caches(text, images):
    llava, inputs = model(text), tiny.batch(tiny.prompt(images, seed=3))
    whole = generate(llava, inputs, tokens=1)[2]
    with feathervlm.prune(llava, FEATHER) as pruning:
        pruned = generate(llava, inputs, tokens=1)[2]
    assert pruning.report.kv_bytes_ratio == pytest.approx(numbers(pruned) / numbers(whole), rel=1e-12)


def test_a_batch_counts_every_sample_without_its_padding():
    prompts = [tiny.prompt(2, seed=4), tiny.prompt(0, seed=5), tiny.prompt(1, seed=6, after=3)]
    report = report_of(model(), FEATHER, *prompts)
    singles = [report_of(model(), FEATHER, prompts[0]), report_of(model(), FEATHER, prompts[2])]
    counts = [*singles[0].tokens_per_layer, [0] * DEPTH, *singles[1].tokens_per_layer]
    assert report.tokens_per_layer == counts
    assert report.average_tokens == pytest.approx(sum(map(sum, counts)) / DEPTH / 2)
    layers, lengths = report.record.costs, [len(prompt) for prompt in prompts]
    pruned = unpruned = 0
    for length, visual, tokens in zip(lengths, (72, 0, 36), counts, strict=True):
        pruned += flops(layers, [length - visual + token for token in tokens])
        unpruned += flops(layers, [length] * DEPTH)
    assert report.flops_ratio == pytest.approx(pruned / unpruned, rel=1e-12)
    for stage, one, other in zip(report.stages, *(single.stages for single in singles), strict=True):
        assert [kept.tolist() for kept in stage.kept] == [one.kept[0].tolist(), [], other.kept[0].tolist()]
        assert [len(scores) for scores in stage.scores] == [len(one.scores[0]), 0, len(other.scores[0])]


def test_scores_are_of_the_tokens_that_entered_and_explain_what_stayed():
    for seed in range(5):
        report = report_of(model(), methods.PyramidDrop(layers=(1, 3), form="baseline"), tiny.prompt(1, seed=seed))
        entered = torch.arange(TOTAL)
        for stage in report.stages:
            scores = stage.scores[0]
            assert scores.dtype == torch.float32
            assert scores.sum() == pytest.approx(1, abs=1e-5)
            best = torch.sort(scores, descending=True, stable=True).indices[: len(entered) // 2]
            assert stage.kept[0].tolist() == entered[best].sort().values.tolist()
            entered = stage.kept[0]


def test_grids_are_those_of_every_image_and_stage():
    report = report_of(model(), FEATHER, tiny.prompt(2, seed=7), tiny.prompt(1, seed=8))
    for batch, images in enumerate((2, 1)):
        for stage in (0, 1):
            kept = torch.cat([report.grid(image, stage, batch).flatten() for image in range(images)])
            assert kept.nonzero()[:, 0].tolist() == report.stages[stage].kept[batch].tolist()
    assert report.grid(0, 0)[0, ::3, ::3].all()
    assert report.grid(1).shape == report.grid(-1).shape == (1, tiny.SIDE, tiny.SIDE)
    assert torch.equal(report.grid(-1), report.grid(1))
    for wrong in ({"image": 2}, {"image": 1, "batch": 1}, {"stage": 2}, {"batch": 2}):
        with pytest.raises(PruningError, match=r"2 samples, 2 stages, and \[2, 1\] images"):
            report.grid(**wrong)


def test_a_second_turn_reports_its_own_image_and_the_cache_it_joined():
    llava, first = model(), tiny.batch(tiny.prompt(1, seed=9))
    second = tiny.batch(tiny.prompt(2, seed=10))
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        past = llava(**first, use_cache=True).past_key_values
        before = [layer.keys.shape[-2] for layer in past.layers]
        llava(input_ids=second["input_ids"], pixel_values=second["pixel_values"], past_key_values=past)
    report = pruning.report
    assert [report.grid(image, 0).sum() for image in (0, 1)] != [0, 0]
    new = [layer.keys.shape[-2] - old for layer, old in zip(past.layers, before, strict=True)]
    length = second["input_ids"].shape[1]
    assert new == [length - 2 * TOTAL + visual for visual in report.tokens_per_layer[0]]
    everything = first["input_ids"].shape[1] + length
    stored = sum(before) + sum(new)
    assert report.kv_bytes_ratio == pytest.approx(stored / (everything * DEPTH), rel=1e-12)
    layers = report.record.costs
    whole = flops(layers, [length] * DEPTH, [everything - length] * DEPTH)
    assert report.flops_ratio == pytest.approx(flops(layers, new, before) / whole, rel=1e-12)


def test_a_ragged_second_turn_counts_real_slots_only():
    llava, prompts = model(), [tiny.prompt(1, seed=11), tiny.prompt(2, seed=12)]
    first, second = (
        tiny.batch(*prompts),
        tiny.batch(tiny.prompt(1, seed=13), tiny.prompt(1, seed=14)),
    )
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        past = llava(**first, use_cache=True).past_key_values
        turn = [pruning.report]
        llava(**{**second, "attention_mask": mask}, past_key_values=past)
        turn.append(pruning.report)
    words, new_words = [len(prompt) - TOTAL * (row + 1) for row, prompt in enumerate(prompts)], 14
    for layer in (0, 3, 5):
        for row in (0, 1):
            held = turn[1].costs.past(row)[layer]
            padding = 0 if layer else first["input_ids"].shape[1] - len(prompts[row])
            assert held - padding == words[row] + turn[0].tokens_per_layer[row][layer]
    assert new_words == second["input_ids"].shape[1] - TOTAL


@pytest.mark.parametrize("method", [FEATHER, methods.Uniform(layer=0), methods.TextOnly()])
def test_to_dict_is_json_and_complete(method):
    report = report_of(model(), method, tiny.prompt(1, seed=15), tiny.prompt(0, seed=16))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["pruned"]
    assert data["method"] == str(method)
    assert data["grids"] == [[[1, 6, 6]], []]
    assert data["tokens_per_layer"] == report.tokens_per_layer
    assert data["flops_ratio"] == report.flops_ratio
    assert data["kv_bytes_ratio"] == report.kv_bytes_ratio
    assert data["average_tokens"] == report.average_tokens
    assert [stage["kept"][0] for stage in data["stages"]] == [stage.kept[0].tolist() for stage in report.stages]


def test_print_shows_a_short_table():
    report = report_of(model(), methods.Uniform(layer=2, stride=2), tiny.prompt(1, seed=17), tiny.prompt(0, seed=18))
    lines = str(report).splitlines()
    assert lines[0] == "uniform:layer=2: visual tokens per layer"
    assert lines[1].split() == ["layers", "0", "to", "1", "36"]
    assert lines[2].split() == ["layers", "2", "to", "5", "9"]
    assert lines[3].split() == ["average", "18.0", "of", "36"]
    assert len(lines) == 7
    ragged = report_of(model(), methods.Uniform(layer=0), tiny.prompt(1, seed=17), tiny.prompt(2, seed=18))
    assert "9 to 18" in str(ragged)


def test_substituted_scoring_layers_are_noted():
    report = report_of(model("mistral"), FEATHER, tiny.prompt(1, seed=19))
    assert len(report.notes) == 2
    assert "layer 1 sees a part of the sequence" in report.notes[0]
    assert report.notes[0] in str(report)


def test_before_any_prompt_there_is_nothing_to_report():
    with feathervlm.prune(model(), FEATHER) as pruning:
        assert not pruning.report.pruned
        assert json.dumps(pruning.report.to_dict())
        assert "no prompt has been run yet" in str(pruning.report)
        with pytest.raises(PruningError, match="no prompt has been run yet"):
            _ = pruning.report.flops_ratio


def test_scores_are_those_of_the_first_criterion():
    no_rope, rope = feathervlm.LastTokenAttention(rope=False), feathervlm.LastTokenAttention()
    prompt = tiny.prompt(1, seed=20)
    one = report_of(model(), Schedule(Stage(2, Top(no_rope, 0.3) | Top(rope, 0.3))), prompt)
    other = report_of(model(), Schedule(Stage(2, Top(no_rope, 0.3) | Grid(3))), prompt)
    assert torch.equal(one.stages[0].scores[0], other.stages[0].scores[0])


def test_a_report_in_one_line_and_as_html():
    report = report_of(model(), methods.Uniform(layer=2, stride=2), tiny.prompt(1, seed=17))
    assert repr(report) == (
        f"Report(uniform:layer=2: 18.0 of 36 visual tokens per layer, {report.flops_ratio:.1%} of the prefill's FLOPs)"
    )
    html = ElementTree.fromstring(report._repr_html_())
    shown = [[cell.text for cell in row] for row in html.iter("tr")]
    assert html.findtext("caption") == "uniform:layer=2: visual tokens per layer"
    for (label, value), line in zip(shown, str(report).splitlines()[1:], strict=True):
        assert line.split() == [*label.split(), *value.split()]


def test_html_shows_notes_and_escapes_them():
    report = Report("a<b", None, "x & y")
    assert repr(report) == "Report(a<b: x & y)"
    html = ElementTree.fromstring(report._repr_html_())
    assert html.findtext("caption") == "a<b: visual tokens per layer"
    assert [cell.text for cell in html.iter("td")] == ["x & y"]


def test_the_layout_is_that_of_the_prompts():
    report = report_of(model(), FEATHER, tiny.prompt(2, seed=21), tiny.prompt(0, seed=22))
    assert report.layout.counts == (72, 0)
    with pytest.raises(PruningError, match="There is nothing to report: nothing was pruned"):
        _ = Report("fastv", None).layout
