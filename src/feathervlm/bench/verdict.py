"""Interprets rows in sentences: where a method gains, where it does not and why, and from how many tokens on it pays.

The input are rows as `rows.rows` returns them. The thresholds are the constants of this module.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import exp, log
from typing import Any, Literal

from feathervlm.bench.rows import noise, unpruned
from feathervlm.inference.model_spec import UNPRUNED

Row = dict[str, Any]

ENCODER_BOUND = 0.5
"""Share of the unpruned time to first token from which a case counts as bound by the vision encoder."""
FEW = 0.5
"""Share of a prompt below which its visual tokens are few."""
FIXED = 4
"""Decoding steps up to which a prefill is bound by the fixed cost of a step, not by its tokens."""
LITTLE = 0.9
"""FLOPs ratio above which a schedule saves too little."""
STEADY = 0.02
"""Relative difference that counts as noise even if a few runs happen to agree."""
LEVELS = (("prefill", 1.0), ("first_token", 0.9))
"""(ratio, level) of the break-even points: a prefill that is no slower, and a first token a tenth sooner."""


@dataclass(frozen=True)
class Verdict:
    """The effect of one method in one case.

    Attributes:
        method: Spec of the method.
        tokens: Visual tokens of a sample.
        batch: Batch size.
        layers: Number of decoder layers.
        gain: Whether the first token comes sooner by more than the noise.
        reasons: Short names of what limits the gain, also where there is one.
        text: The effect in sentences.
    """

    method: str
    tokens: int
    batch: int
    layers: int
    gain: bool
    reasons: tuple[str, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return one verdict for every row of a method, in their order."""
    return [verdict(row, unpruned(row, rows)) for row in rows if row["method"] != UNPRUNED]


def verdict(row: Row, plain: Row) -> Verdict:
    """Compare a row with the unpruned row of the same case."""
    first, margin = row["ratio"]["first_token"], max(noise(plain, "first_token"), STEADY)
    gain = first["high"] < 1 - margin
    slower = first["low"] > 1 + margin
    reasons = dict(_reasons(row, plain))
    head = (
        f"the first token takes {first['median']:.2f} of the unpruned time, the prefill "
        f"{row['ratio']['prefill']['median']:.2f} (FLOPs: {row['ideal']['prefill']:.2f})"
    )
    if not gain:
        head = f"{'slower' if slower else 'no gain'}: {head}"
        if slower:
            reasons = reasons or {"overhead": "hooks, gathering and scoring cost more than is saved"}
        else:
            reasons = reasons or {"noise": f"the difference is within the noise of {margin:.0%}"}
    sentences = [head, *reasons.values(), *_decoding(row, plain)]
    return Verdict(
        row["method"], row["tokens"], row["batch"], row["layers"], gain, tuple(reasons), "; ".join(sentences) + "."
    )


def _reasons(row: Row, plain: Row) -> Iterator[tuple[str, str]]:
    """Yield (short name, sentence) of everything that limits the gain."""
    if row["stages"] and row["stages"][-1]["tokens"] >= row["tokens"]:
        yield "nothing dropped", "every token is kept, so that this is what the hooks cost"
        return
    seconds = {part: quartiles["median"] for part, quartiles in plain["seconds"].items()}
    total = row["tokens"] + row["text"]
    if row["tokens"] < FEW * total:
        yield "too few tokens", f"only {row['tokens']} of {total} tokens are visual"
    elif seconds["prefill"] < FIXED * seconds["decode"]:
        steps = seconds["prefill"] / seconds["decode"]
        yield (
            "too few tokens",
            f"a whole prefill takes as long as {steps:.1f} decoding steps, so it is bound by what every step costs and "
            "not by its tokens",
        )
    if row["ideal"]["prefill"] > LITTLE and row["tokens"] >= FEW * total and row["stages"]:
        stage = row["stages"][0]
        yield (
            "too shallow",
            f"tokens leave before layer {stage['layer']} of {row['layers']}, which saves "
            f"{1 - row['ideal']['prefill']:.0%} of the FLOPs",
        )
    share = seconds["encoder"] / seconds["first_token"]
    if share > ENCODER_BOUND:
        yield (
            "encoder-bound",
            f"the vision encoder takes {share:.0%} of the unpruned time to first token, and pruning leaves it as it is",
        )
    selection, saved = row["selection_share"], 1 - row["ideal"]["prefill"]
    if selection is not None and selection["median"] > saved / 2:
        yield "selection", f"choosing tokens takes {selection['median']:.0%} of an unpruned prefill"


def _decoding(row: Row, plain: Row) -> Iterator[str]:
    """Yield a sentence if the time of a decoding step changed by more than the noise."""
    ratio, margin = row["ratio"]["decode"], max(noise(plain, "decode"), STEADY)
    if ratio["high"] < 1 - margin or ratio["low"] > 1 + margin:
        yield f"a decoding step takes {ratio['median']:.2f} of the unpruned one"


@dataclass(frozen=True)
class BreakEven:
    """The number of visual tokens from which on a ratio is below a level.

    Attributes:
        method: Spec of the method.
        batch: Batch size.
        layers: Number of decoder layers.
        part: Name of the ratio.
        level: Level that the ratio falls below.
        relation: "at" if the ratio crosses the level at `tokens`; "below" if it is below the level at all measured
            numbers, of which `tokens` is the smallest; "above" if it is not below the level at the largest measured
            number, which is `tokens`.
        tokens: Visual tokens of a sample.
    """

    method: str
    batch: int
    layers: int
    part: str
    level: float
    relation: Literal["at", "below", "above"]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        words = {"at": "from", "below": "already at", "above": "not up to"}
        return f"{words[self.relation]} {self.tokens}"


def break_even(rows: Sequence[Row]) -> list[BreakEven]:
    """Return the points of every method, batch size and depth measured at several numbers of tokens, at every level."""

    def key(row: Row) -> tuple[str, int, int]:
        return row["method"], row["batch"], row["layers"]

    result = []
    for (method, batch, layers), group in groupby(sorted(rows, key=key), key=key):
        points = sorted(group, key=lambda row: row["tokens"])
        if method == UNPRUNED or len(points) < 2:
            continue
        for part, level in LEVELS:
            ratios = [(row["tokens"], row["ratio"][part]["median"]) for row in points]
            result.append(BreakEven(method, batch, layers, part, level, *crossing(ratios, level)))
    return result


def crossing(points: Sequence[tuple[int, float]], level: float) -> tuple[Literal["at", "below", "above"], int]:
    """Return where ratios fall below a level for good, by interpolation over the logarithm of the tokens.

    >>> crossing([(100, 1.2), (400, 0.8)], 1.0)
    ('at', 200)
    >>> crossing([(100, 0.9), (400, 0.8)], 1.0)
    ('below', 100)

    Args:
        points: Pairs (tokens, ratio) in ascending order of tokens.
        level: Level of the ratio.
    """
    last = max((number for number, (_, ratio) in enumerate(points) if ratio >= level), default=None)
    if last is None:
        return "below", points[0][0]
    if last == len(points) - 1:
        return "above", points[-1][0]
    (left, high), (right, low) = points[last], points[last + 1]
    share = (high - level) / (high - low)
    return "at", round(exp(log(left) + share * (log(right) - log(left))))
