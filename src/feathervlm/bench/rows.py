"""Turns times into rows: medians, quartiles, ratios to the unpruned runs of the same round, ideal ratios and gaps.

A ratio is taken round by round, to the mean of the two unpruned runs around the methods. The row of the unpruned model
holds the ratio of these two runs, which is the noise that every other ratio has to exceed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feathervlm.bench.measure import Variant
from feathervlm.bench.timing import Quartiles
from feathervlm.inference.model_spec import UNPRUNED

RATIOS = ("encoder", "prefill", "first_token", "decode", "answer")
"""The compared times: `first_token` is encoder and prefill, `answer` is these and all decoding steps."""


@dataclass(frozen=True)
class BenchCase:
    """The numbers that describe one measurement.

    Attributes:
        tokens: Visual tokens of one prompt.
        sequence: Tokens of one prompt, text included.
        batch: Number of samples.
        layers: Number of decoder layers.
        new_tokens: Number of decoded tokens.
    """

    tokens: int
    sequence: int
    batch: int
    layers: int
    new_tokens: int


def rows(case: BenchCase, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return one row for the unpruned model and one for each method, ready for JSON.

    Args:
        case: The measured case.
        variants: The unpruned runs first and last, the methods between them.
    """
    first, *pruned, repeated = variants
    before, after = (totals(one.seconds, case.new_tokens) for one in (first, repeated))
    plain = {part: [(a + b) / 2 for a, b in zip(before[part], after[part], strict=True)] for part in (*RATIOS, "wall")}
    medians = {part: Quartiles.of(values).median for part, values in plain.items()}
    result = [_row(case, first, before, {part: divide(after[part], before[part]) for part in RATIOS}, first, medians)]
    for one in pruned:
        times = totals(one.seconds, case.new_tokens)
        ratios = {part: divide(times[part], plain[part]) for part in RATIOS}
        result.append(_row(case, one, times, ratios, first, medians))
        result[-1]["selection_share"] = Quartiles.of(divide(times["selection"], plain["wall"])).to_dict()
    return result


def totals(seconds: dict[str, list[float]], new_tokens: int) -> dict[str, list[float]]:
    """Return the measured parts, and the sums that a user waits for.

    >>> sums = totals({"encoder": [1.0], "prefill": [2.0], "decode": [0.5], "selection": [0.1]}, 4)
    >>> sums["first_token"], sums["answer"]
    ([3.0], [4.5])
    """
    first = [a + b for a, b in zip(seconds["encoder"], seconds["prefill"], strict=True)]
    # The prefill gives the first of the new tokens.
    answer = [a + (new_tokens - 1) * b for a, b in zip(first, seconds["decode"], strict=True)]
    return {**seconds, "first_token": first, "answer": answer}


def divide(values: Sequence[float], divisors: Sequence[float]) -> list[float]:
    """Return the ratios round by round; 1 where the divisor is 0."""
    return [a / b if b else 1.0 for a, b in zip(values, divisors, strict=True)]


def ideal(flops: float, encoder: float, prefill: float) -> float:
    """Return the ratio of the time to first token if the prefill took its share of FLOPs and the encoder was unchanged.

    >>> ideal(0.5, encoder=1.0, prefill=3.0)
    0.625
    """
    return (encoder + flops * prefill) / (encoder + prefill)


def _row(
    case: BenchCase,
    variant: Variant,
    times: dict[str, list[float]],
    ratios: dict[str, list[float]],
    first: Variant,
    medians: dict[str, float],
) -> dict[str, Any]:
    report = variant.report or {"stages": [], "average_tokens": float(case.tokens), "notes": []}
    flops, kv = (report.get(name, 1.0) for name in ("flops_ratio", "kv_ratio"))
    ratio = {part: Quartiles.of(values).to_dict() for part, values in ratios.items()}
    peak = None if variant.peak_bytes is None or not first.peak_bytes else variant.peak_bytes / first.peak_bytes
    return {
        "method": variant.method,
        "tokens": case.tokens,
        "text": case.sequence - case.tokens,
        "batch": case.batch,
        "layers": case.layers,
        "stages": report["stages"],
        "average_tokens": report["average_tokens"],
        "seconds": {part: Quartiles.of(values).to_dict() for part, values in times.items()},
        "ratio": ratio,
        "ideal": {
            "prefill": flops,
            "first_token": ideal(flops, medians["encoder"], medians["prefill"]),
            "kv_bytes": kv,
        },
        "gap": 0.0 if variant is first else ratio["prefill"]["median"] - flops,
        "selection_share": None,
        "kv_bytes": variant.kv_bytes,
        "kv_bytes_ratio": variant.kv_bytes / first.kv_bytes if first.kv_bytes else 1.0,
        "peak_bytes": variant.peak_bytes,
        "peak_ratio": peak,
        "notes": report["notes"],
        "raw": variant.seconds,
    }


def unpruned(row: dict[str, Any], among: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the unpruned row of the same case."""
    case = case_of(row)
    return next(other for other in among if other["method"] == UNPRUNED and case_of(other) == case)


def case_of(row: dict[str, Any]) -> tuple[int, int, int]:
    """Return (visual tokens, batch, layers) of a row."""
    return row["tokens"], row["batch"], row["layers"]


def noise(plain: dict[str, Any], part: str) -> float:
    """Return how far the ratio of the two unpruned runs is from 1, at the farther quartile."""
    ratio = plain["ratio"][part]
    return float(max(abs(ratio["low"] - 1), abs(ratio["high"] - 1)))
