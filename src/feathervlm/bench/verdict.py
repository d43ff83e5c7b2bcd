"""What the figures mean, in sentences: where a method gains, where not and why, from how many tokens on it pays.

Reads rows as `result.rows` makes them and decides by rules that stand here; measures nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import exp, log
from typing import Any, Literal

from feathervlm.bench.rows import UNPRUNED, noise, unpruned

Row = dict[str, Any]

ENCODER_BOUND = 0.5
"""Share of the unpruned time to first token from which the vision encoder is what is waited for."""
FEW = 0.5
"""Share of a prompt below which its visual tokens are few."""
FIXED = 4
"""A prefill that takes no longer than so many decoding steps is bound by what every step costs, not by its tokens."""
LITTLE = 0.9
"""FLOPs ratio from which a schedule by itself saves next to nothing."""
STEADY = 0.02
"""Differences up to this count as noise even if a few runs happen to agree."""
LEVELS = (("prefill", 1.0), ("first_token", 0.9))
"""For which ratios the number of tokens is told: prefill no slower, and an answer that begins a tenth sooner."""


@dataclass(frozen=True)
class Verdict:
    """What one method does in one case.

    Attributes:
        method: its spec.
        tokens: visual tokens of a sample.
        batch: size.
        layers: of the decoder.
        gain: whether the first token comes sooner by more than the noise.
        reasons: short names of what stands in the way, also where there is a gain.
        text: all of it in sentences.
    """

    method: str
    tokens: int
    batch: int
    layers: int
    gain: bool
    reasons: tuple[str, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """One for every row of a method, in their order."""
    return [verdict(row, unpruned(row, rows)) for row in rows if row["method"] != UNPRUNED]


def verdict(row: Row, plain: Row) -> Verdict:
    """What a row says beside the unpruned one of the same case."""
    first, wobble = row["ratio"]["first_token"], max(noise(plain, "first_token"), STEADY)
    gain = first["high"] < 1 - wobble
    slower = first["low"] > 1 + wobble
    found = dict(_reasons(row, plain))
    head = (
        f"the first token takes {first['median']:.2f} of the unpruned time, the prefill "
        f"{row['ratio']['prefill']['median']:.2f} (FLOPs: {row['ideal']['prefill']:.2f})"
    )
    if not gain:
        head = f"{'slower' if slower else 'no gain'}: {head}"
        if slower:
            found = found or {"overhead": "hooks, gathering and scoring cost more than is saved"}
        else:
            found = found or {"noise": f"the difference is within the noise of {wobble:.0%}"}
    sentences = [head, *found.values(), *_decoding(row, plain)]
    return Verdict(
        row["method"], row["tokens"], row["batch"], row["layers"], gain, tuple(found), "; ".join(sentences) + "."
    )


def _reasons(row: Row, plain: Row) -> Iterator[tuple[str, str]]:
    """What keeps the gain small, by a short name."""
    if row["stages"] and row["stages"][-1]["tokens"] >= row["tokens"]:
        yield "nothing dropped", "every token is kept, so that this is what the hooks cost"
        return
    seconds = {part: found["median"] for part, found in plain["seconds"].items()}
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
    chosen, saved = row["selection_share"], 1 - row["ideal"]["prefill"]
    if chosen is not None and chosen["median"] > saved / 2:
        yield "selection", f"choosing tokens takes {chosen['median']:.0%} of an unpruned prefill"


def _decoding(row: Row, plain: Row) -> Iterator[str]:
    """Whether decoding changed beyond noise."""
    ratio, wobble = row["ratio"]["decode"], max(noise(plain, "decode"), STEADY)
    if ratio["high"] < 1 - wobble or ratio["low"] > 1 + wobble:
        yield f"a decoding step takes {ratio['median']:.2f} of the unpruned one"


@dataclass(frozen=True)
class BreakEven:
    """From how many visual tokens on a ratio is below a level.

    Attributes:
        method: its spec.
        batch: size.
        layers: of the decoder.
        part: which ratio.
        level: that it falls below.
        relation: "at" the number of `tokens`; already "below" it, the smallest measured; or only "above" it, the
            largest measured, if at all.
        tokens: visual tokens of a sample.
    """

    method: str
    batch: int
    layers: int
    part: str
    level: float
    relation: Literal["at", "below", "above"]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        words = {"at": "from", "below": "already at", "above": "not up to"}
        return f"{words[self.relation]} {self.tokens}"


def break_even(rows: Sequence[Row]) -> list[BreakEven]:
    """For every method, batch size and depth that were measured at several numbers of tokens, and every level."""

    def line(row: Row) -> tuple[str, int, int]:
        return row["method"], row["batch"], row["layers"]

    found = []
    for (method, batch, layers), group in groupby(sorted(rows, key=line), key=line):
        points = sorted(group, key=lambda row: row["tokens"])
        if method == UNPRUNED or len(points) < 2:
            continue
        for part, level in LEVELS:
            ratios = [(row["tokens"], row["ratio"][part]["median"]) for row in points]
            found.append(BreakEven(method, batch, layers, part, level, *crossing(ratios, level)))
    return found


def crossing(points: Sequence[tuple[int, float]], level: float) -> tuple[Literal["at", "below", "above"], int]:
    """Where ratios fall below a level for good, by interpolation over the logarithm of the tokens.

    >>> crossing([(100, 1.2), (400, 0.8)], 1.0)
    ('at', 200)
    >>> crossing([(100, 0.9), (400, 0.8)], 1.0)
    ('below', 100)

    Args:
        points: (tokens, ratio), tokens ascending.
        level: of the ratio.
    """
    last = max((number for number, (_, ratio) in enumerate(points) if ratio >= level), default=None)
    if last is None:
        return "below", points[0][0]
    if last == len(points) - 1:
        return "above", points[-1][0]
    (left, high), (right, low) = points[last], points[last + 1]
    share = (high - level) / (high - low)
    return "at", round(exp(log(left) + share * (log(right) - log(left))))
