"""Numbers from samples: scores by hand, the paper's averages, and the paper beside."""

import pytest

from feathervlm import methods
from feathervlm.evaluation import paper
from feathervlm.evaluation.results import rows
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks import SUITE, TASKS
from feathervlm.inference.model_spec import UNPRUNED


def made(scores, splits=None, answers=None, **facts):
    columns = zip(scores, splits or [""] * len(scores), answers or [""] * len(scores), strict=True)
    return [Sample(n, str(n), split, answer, score, **facts) for n, (score, split, answer) in enumerate(columns)]


def by_key(found):
    return {(row.task, row.method): row for row in found}


def test_pooled_and_mean_of_splits():
    splits = ["simple"] * 3 + ["complex"]
    found = by_key(rows({"tallyqa": {UNPRUNED: made([1, 1, 1, 0], splits)}}))
    row = found["tallyqa", UNPRUNED]
    assert row.score.value == 0.75
    assert {name: one.value for name, one in row.splits.items()} == {"complex": 0, "simple": 1}
    subsets = ["adversarial"] * 3 + ["popular"] * 2 + ["random"]
    found = by_key(rows({"pope": {UNPRUNED: made([1, 1, 0, 1, 0, 1], subsets, answers=["Yes"] * 6)}}))
    row = found["pope", UNPRUNED]
    assert row.score.value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # 4 of 6 times "yes" was said and right, and nothing that is there was missed.
    assert row.more == {"f1": pytest.approx(2 * 4 / (6 + 4)), "yes": 1.0}
    assert TASKS["pope"].more(made([1, 1], answers=["No", "No"])) == {"f1": 0.0, "yes": 0.0}


def test_changes_and_retention_are_paired():
    unpruned, pruned = [1, 1, 0.3, 0.9] * 50, [1, 0, 0.3, 0.6] * 50
    cost = {"tokens": 10.0, "flops": 0.25}
    found = by_key(rows({"vqav2": {UNPRUNED: made(unpruned), "fastv": made(pruned, **cost)}}))
    row = found["vqav2", "fastv"]
    assert found["vqav2", UNPRUNED].change is None
    assert row.change.value == pytest.approx(-1.3 / 4)
    assert row.retention.value == pytest.approx(1.9 / 3.2)
    assert row.change.low < row.change.value < row.change.high < 0
    assert (row.tokens, row.flops, row.invalid) == (10.0, 0.25, None)
    alone = row.score.high - row.score.low + found["vqav2", UNPRUNED].score.high - found["vqav2", UNPRUNED].score.low
    assert row.change.high - row.change.low < alone


def test_the_share_of_answers_without_a_box():
    samples = [Sample(n, str(n), "", "", 0.0, valid=n > 0, iou=0.0) for n in range(4)]
    assert by_key(rows({"refcoco": {UNPRUNED: samples}}))["refcoco", UNPRUNED].invalid == 0.25


def test_nothing_right_gives_no_retention():
    found = by_key(rows({"gqa": {UNPRUNED: made([0, 0]), "fastv": made([0, 1])}}))["gqa", "fastv"].to_dict()
    assert found["retention"]["value"] is None
    assert found["change"]["value"] == 0.5


def test_the_paper_s_averages_where_all_four_are_there():
    baseline = paper.printed()[0].scores
    names = [name for names in SUITE.values() for name in names if name != "vsr"]
    right = {name: round(10 * baseline[name]) for name in names}
    splits = {name: ["one"] * 1000 if TASKS[name].average == "splits" else None for name in names}
    samples = {name: {UNPRUNED: made([1] * right[name] + [0] * (1000 - right[name]), splits[name])} for name in names}
    found = by_key(rows(samples))
    assert ("challenge", UNPRUNED) not in found
    for group in ("localization", "open-ended"):
        assert 100 * found[group, UNPRUNED].score.value == pytest.approx(baseline[group], abs=0.051)


ABOUT = {"model": {"model_type": "llava", "depth": 32}, "protocol": "paper", "tasks": {}}


def test_printed_averages_are_the_means_of_what_is_printed():
    for row in paper.printed():
        for group, names in SUITE.items():
            if group in row.scores and set(names) <= row.scores.keys():
                mean = sum(row.scores[name] for name in names) / 4
                assert row.scores[group] == pytest.approx(mean, abs=0.11), (row.label, group)


def test_every_row_names_what_there_is():
    for row in paper.printed():
        assert row.method == "none" or methods.get(row.method)
        assert set(row.scores) <= {*TASKS, *SUITE}
        assert row.source
    assert paper.tolerance() == 1.5


def test_known_rows():
    found = {(row.label, row.source): row.scores for row in paper.printed()}
    assert found["FEATHER, 64 % saved", "comparison with FEATHER"]["localization"] == 39.3
    assert found["FEATHER", "README of markendo/FEATHER"]["refcoco"] == 43.4
    assert found["unpruned", "Table 1, baseline"]["pope"] == 87.4
    assert found["phi_original, K=3 (FastV)", "Table 1"]["textvqa"] == 31.8


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("fastv", {"phi_original, K=3 (FastV)", "FastV"}),
        ("fastv:layer=3,keep=0.25", {"phi_original, K=3 (FastV)", "FastV"}),
        ("fastv:layer=0.25", {"phi_original, K=8"}),
        ("feather", {"FEATHER, 64 % saved", "FEATHER"}),
        ("feather:layers=0.25+16", {"FEATHER, 64 % saved", "FEATHER"}),
        ("feather:keep=0.25", set()),
        ("fastv:layer=40", set()),
        (UNPRUNED, {"unpruned"}),
    ],
)
def test_a_method_meets_its_rows(spec, labels):
    found = rows({"refcoco": {UNPRUNED: made([1, 0]), spec: made([1, 0])}})
    compared = paper.compare([row for row in found if row.method == spec], ABOUT)
    assert {one["label"] for one in compared["rows"]} == labels


@pytest.mark.parametrize(("right", "within"), [(618, True), (648, True), (649, False), (617, False)])
def test_within_1_5_points(right, within):
    """The paper's unpruned VSR is 63.3."""
    found = rows({"vsr": {UNPRUNED: made([1] * right + [0] * (1000 - right))}})
    (one,) = paper.compare(found, ABOUT)["rows"]
    assert one["difference"] == pytest.approx(right / 10 - 63.3)
    assert one["within"] is within


def test_what_sets_a_run_apart_is_said():
    about = {
        "model": {"model_type": "qwen2_vl", "depth": 28},
        "protocol": "symmetric",
        "tasks": {"vsr": {"questions": 10, "paper": 1222}, "embedded": {"questions": 10, "paper": None}},
    }
    assert paper.differences(about) == [
        "the model is a qwen2_vl of 28 layers",
        "the protocol is symmetric",
        "vsr has 10 questions instead of 1222",
    ]
