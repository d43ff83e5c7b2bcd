"""From times to rows: medians, quartiles, ratios to the unpruned runs of the same round, ideal ratios, gaps.

Arithmetic only. A ratio is taken round by round, to the mean of the two unpruned runs around the methods; the row of
the unpruned model holds the ratio of these two, which is the noise that every other ratio has to beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feathervlm.bench.measure import Found
from feathervlm.bench.timing import Spread

UNPRUNED = "unpruned"
RATIOS = ("encoder", "prefill", "first_token", "decode", "answer")
"""What is compared: `first_token` is encoder and prefill, `answer` these and all decoding steps."""


@dataclass(frozen=True)
class Case:
    """What was asked: visual tokens and length of one prompt, batch, decoder layers, decoded tokens."""

    tokens: int
    sequence: int
    batch: int
    layers: int
    new_tokens: int


def rows(case: Case, found: Sequence[Found]) -> list[dict[str, Any]]:
    """One row for the unpruned model and one for each method, ready for JSON.

    Args:
        case: what was measured.
        found: the unpruned runs first and last, the methods between.
    """
    first, *pruned, again = found
    before, after = (totals(one.seconds, case.new_tokens) for one in (first, again))
    plain = {part: [(a + b) / 2 for a, b in zip(before[part], after[part], strict=True)] for part in (*RATIOS, "wall")}
    middle = {part: Spread.of(values).median for part, values in plain.items()}
    made = [_row(case, first, before, {part: divided(after[part], before[part]) for part in RATIOS}, first, middle)]
    for one in pruned:
        times = totals(one.seconds, case.new_tokens)
        made.append(_row(case, one, times, {part: divided(times[part], plain[part]) for part in RATIOS}, first, middle))
        share = divided(times["selection"], plain["wall"])
        made[-1]["selection_share"] = Spread.of(share).to_dict()
    return made


def totals(seconds: dict[str, list[float]], new_tokens: int) -> dict[str, list[float]]:
    """The measured parts, and the sums that a user waits for.

    >>> found = totals({"encoder": [1.0], "prefill": [2.0], "decode": [0.5], "selection": [0.1]}, 4)
    >>> found["first_token"], found["answer"]
    ([3.0], [4.5])
    """
    first = [a + b for a, b in zip(seconds["encoder"], seconds["prefill"], strict=True)]
    # The prefill gives the first of the new tokens.
    answer = [a + (new_tokens - 1) * b for a, b in zip(first, seconds["decode"], strict=True)]
    return {**seconds, "first_token": first, "answer": answer}


def divided(values: Sequence[float], by: Sequence[float]) -> list[float]:
    """Ratios, round by round."""
    return [a / b if b else 1.0 for a, b in zip(values, by, strict=True)]


def ideal(flops: float, encoder: float, prefill: float) -> float:
    """The ratio of the time to first token if the prefill took its share of FLOPs and the encoder stayed as it is.

    >>> ideal(0.5, encoder=1.0, prefill=3.0)
    0.625
    """
    return (encoder + flops * prefill) / (encoder + prefill)


def _row(
    case: Case,
    one: Found,
    times: dict[str, list[float]],
    ratios: dict[str, list[float]],
    first: Found,
    middle: dict[str, float],
) -> dict[str, Any]:
    report = one.report or {"stages": [], "average_tokens": float(case.tokens), "notes": []}
    flops, kv = (report.get(name, 1.0) for name in ("flops_ratio", "kv_ratio"))
    ratio = {part: Spread.of(values).to_dict() for part, values in ratios.items()}
    peak = None if one.peak_bytes is None or not first.peak_bytes else one.peak_bytes / first.peak_bytes
    return {
        "method": UNPRUNED if one is first else one.method,
        "tokens": case.tokens,
        "text": case.sequence - case.tokens,
        "batch": case.batch,
        "layers": case.layers,
        "stages": report["stages"],
        "average_tokens": report["average_tokens"],
        "seconds": {part: Spread.of(values).to_dict() for part, values in times.items()},
        "ratio": ratio,
        "ideal": {
            "prefill": flops,
            "first_token": ideal(flops, middle["encoder"], middle["prefill"]),
            "kv_bytes": kv,
        },
        "gap": 0.0 if one is first else ratio["prefill"]["median"] - flops,
        "selection_share": None,
        "kv_bytes": one.kv_bytes,
        "kv_bytes_ratio": one.kv_bytes / first.kv_bytes if first.kv_bytes else 1.0,
        "peak_bytes": one.peak_bytes,
        "peak_ratio": peak,
        "notes": report["notes"],
        "raw": one.seconds,
    }


def unpruned(row: dict[str, Any], among: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The unpruned row of the same case."""
    case = case_of(row)
    return next(other for other in among if other["method"] == UNPRUNED and case_of(other) == case)


def case_of(row: dict[str, Any]) -> tuple[int, int, int]:
    """(visual tokens, batch, layers)."""
    return row["tokens"], row["batch"], row["layers"]


def noise(plain: dict[str, Any], part: str) -> float:
    """How far the unpruned model is from itself: the farther quartile of the ratio of its two runs, from 1."""
    found = plain["ratio"][part]
    return float(max(abs(found["low"] - 1), abs(found["high"] - 1)))
