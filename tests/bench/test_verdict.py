"""Sentences and reasons on rows that were never measured; where a line crosses a level."""

import pytest

from bench.conftest import even
from feathervlm.bench.verdict import break_even, crossing, verdict, verdicts


def test_a_gain_is_one_beyond_the_noise(plain, row):
    found = verdict(row, plain)
    assert found.gain
    assert found.reasons == ()
    assert found.text == (
        "the first token takes 0.55 of the unpruned time, the prefill 0.50 (FLOPs: 0.40)."
    )  # a decoding step within its noise is not worth a word
    row["ratio"]["first_token"] = even(0.98, 0.005)
    inside = verdict(row, plain)
    assert not inside.gain
    assert inside.reasons == ("noise",)
    assert inside.text.startswith("no gain: ")
    assert inside.text.endswith("the difference is within the noise of 3%.")


def test_little_noise_of_few_runs_is_not_believed(plain, row):
    plain["ratio"]["first_token"] = even(1.0)
    row["ratio"]["first_token"] = even(0.985)
    assert not verdict(row, plain).gain


def test_slower_is_called_so(plain, row):
    row["ratio"]["first_token"] = even(1.2, 0.01)
    found = verdict(row, plain)
    assert found.text.startswith("slower: the first token takes 1.20")
    assert found.reasons == ("overhead",)


def test_too_few_tokens_by_share_and_by_cost(plain, row):
    few = verdict(row | {"tokens": 40, "text": 60, "stages": [{"layer": 3, "tokens": 10.0}]}, plain)
    assert few.reasons == ("too few tokens",)
    assert "only 40 of 100 tokens are visual" in few.text
    plain["seconds"]["prefill"] = even(0.15)
    fixed = verdict(row, plain)
    assert fixed.reasons == ("too few tokens",)
    assert "as long as 3.0 decoding steps" in fixed.text


def test_too_shallow(plain, row):
    row["ideal"]["prefill"] = 0.95
    row["stages"] = [{"layer": 22, "tokens": 100.0}]
    found = verdict(row, plain)
    assert found.reasons == ("too shallow",)
    assert "before layer 22 of 24, which saves 5% of the FLOPs" in found.text


def test_keeping_everything_has_no_other_reason(plain, row):
    row |= {"stages": [{"layer": 3, "tokens": 576.0}], "selection_share": even(0.01)}
    row["ideal"]["prefill"], row["ratio"]["first_token"] = 1.0, even(1.01)
    assert verdict(row, plain).reasons == ("nothing dropped",)


def test_encoder_bound(plain, row):
    plain["seconds"]["encoder"] = even(0.8)
    found = verdict(row, plain)
    assert found.reasons == ("encoder-bound",)
    assert "the vision encoder takes 80% of the unpruned time to first token" in found.text


def test_dear_selection_and_changed_decoding(plain, row):
    row["selection_share"] = even(0.31)
    row["ratio"]["decode"] = even(1.1, 0.01)
    found = verdict(row, plain)
    assert found.reasons == ("selection",)
    assert "choosing tokens takes 31% of an unpruned prefill" in found.text
    assert found.text.endswith("a decoding step takes 1.10 of the unpruned one.")


def test_every_method_is_compared_within_its_case(plain, row):
    other = plain | {"batch": 8, "ratio": {part: even(1.0, 0.6) for part in plain["ratio"]}}
    found = verdicts([plain, row, other, row | {"batch": 8}])
    assert [(one.batch, one.gain) for one in found] == [(1, True), (8, False)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(100, 1.2), (400, 0.8)], ("at", 200)),
        ([(100, 1.1), (200, 0.9), (400, 1.1), (800, 0.7)], ("at", 476)),  # for good: 400 * 2 ** 0.25
        ([(100, 0.9), (400, 0.8)], ("below", 100)),
        ([(100, 0.9), (400, 1.0)], ("above", 400)),
    ],
)
def test_crossing(points, expected):
    assert crossing(points, 1.0) == expected


def test_break_even_of_every_method_batch_and_depth(plain, row):
    def at(tokens, prefill, first, **more):
        return row | {"tokens": tokens, **more, "ratio": row["ratio"] | {
            "prefill": even(prefill), "first_token": even(first)}}  # fmt: skip

    lines = [at(400, 0.8, 0.85), at(100, 1.2, 1.2), plain, plain | {"tokens": 100}, at(400, 0.8, 0.95, batch=8)]
    found = [(one.batch, one.part, one.level, str(one)) for one in break_even(lines)]
    assert found == [(1, "prefill", 1.0, "from 200"), (1, "first_token", 0.9, "from 328")]
