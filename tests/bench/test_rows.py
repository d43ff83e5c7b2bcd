"""Ratios, ideals and gaps against sums done by hand."""

import pytest

from feathervlm.bench.measure import Variant
from feathervlm.bench.rows import BenchCase, noise, rows, unpruned

CASE = BenchCase(tokens=100, sequence=150, batch=2, layers=4, new_tokens=3)


def found(method, encoder, prefill, decode, selection=(0.0, 0.0), kv=1000, peak=None, report=None):
    seconds = {"encoder": encoder, "prefill": prefill, "decode": decode, "selection": selection}
    seconds["wall"] = [2 * value for value in prefill]
    return Variant(method, {part: list(values) for part, values in seconds.items()}, kv, peak, report)


REPORT = {
    "stages": [{"layer": 1, "tokens": 30.0}],
    "average_tokens": 40.0,
    "flops_ratio": 0.5,
    "kv_ratio": 0.45,
    "notes": ["a note"],
}


def measured():
    return rows(
        CASE,
        [
            found("unpruned", (1.0, 1.0), (4.0, 8.0), (0.5, 0.5), peak=200),
            found("fastv", (1.5, 1.0), (3.0, 3.0), (0.25, 0.5), (0.05, 0.1), 400, 150, REPORT),
            found("unpruned again", (1.0, 1.0), (6.0, 4.0), (0.5, 1.5), peak=200),
        ],
    )


def test_ratios_are_to_the_mean_of_both_unpruned_runs_of_the_round():
    _, row = measured()
    assert row["ratio"]["prefill"] == pytest.approx({"median": 0.55, "low": 0.525, "high": 0.575})  # 3/5 and 3/6
    assert row["ratio"]["encoder"]["median"] == pytest.approx(1.25)
    assert row["ratio"]["decode"]["median"] == pytest.approx((0.25 / 0.5 + 0.5 / 1.0) / 2)
    assert row["ratio"]["first_token"]["median"] == pytest.approx((4.5 / 6 + 4 / 7) / 2)
    # Two more tokens: 4.5 + 0.5 to 6 + 1, and 4 + 1 to 7 + 2.
    assert row["ratio"]["answer"]["median"] == pytest.approx((5 / 7 + 5 / 9) / 2)
    assert row["selection_share"]["median"] == pytest.approx((0.05 / 10 + 0.1 / 12) / 2)  # by the wall clock


def test_the_unpruned_row_holds_the_noise():
    plain, row = measured()
    assert (plain["method"], plain["gap"], plain["selection_share"]) == ("unpruned", 0.0, None)
    assert plain["ratio"]["prefill"] == pytest.approx({"median": 1.0, "low": 0.75, "high": 1.25})  # 6/4 and 4/8
    assert noise(plain, "prefill") == pytest.approx(0.25)
    assert unpruned(row, [plain, row]) is plain


def test_ideals_gap_and_bytes():
    plain, row = measured()
    assert row["gap"] == pytest.approx(0.55 - 0.5)
    assert row["ideal"]["prefill"] == 0.5
    assert row["ideal"]["first_token"] == pytest.approx((1 + 0.5 * 5.5) / 6.5)  # encoder 1, prefill median of 5 and 6
    assert (row["kv_bytes_ratio"], row["ideal"]["kv_bytes"]) == (0.4, 0.45)
    assert (row["peak_ratio"], plain["peak_ratio"]) == (0.75, 1.0)
    assert (row["text"], row["tokens"], row["batch"], row["layers"]) == (50, 100, 2, 4)
    assert row["stages"] == REPORT["stages"]
    assert row["raw"]["prefill"] == [3.0, 3.0]


def test_what_cannot_be_measured_is_none():
    nothing = rows(CASE, [found(name, (1.0,), (1.0,), (1.0,), (0.0,)) for name in ("unpruned", "again")])
    assert (nothing[0]["peak_bytes"], nothing[0]["peak_ratio"]) == (None, None)
