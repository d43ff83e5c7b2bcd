"""What the numbers of a diagnosis mean, in plain words: what looks wrong, and what to do about it.

All thresholds stand in one table, `LIMITS`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from feathervlm.core.schedule import Schedule
from feathervlm.diagnosis.observe import Observation
from feathervlm.diagnosis.stage_traits import StageTraits
from feathervlm.diagnosis.summary import StageSummary, Statistic

Level = Literal["alarm", "warning", "note", "good"]

LIMITS = {
    "third": (0.45, "share of the kept tokens in an outer third of the picture (even: 0.33)"),
    "border": (1.5, "share of the kept tokens at the border, over an even one"),
    "hole": (1.5, "side of the largest empty square, over that of as many random tokens"),
    "hole_least": (0.4, "and at least this share of the picture's side"),
    "empty": (1.5, "share of empty blocks, over that of as many random tokens"),
    "empty_least": (0.4, "and at least this share of all blocks"),
    "prior": (0.5, "rank correlation of the heat map with RoPE's decay, if scores use RoPE"),
    "alike": (0.8, "share of the kept tokens that is the same from picture to picture"),
    "alike_more": (0.2, "and this much more than by chance"),
    "foresight": (0.1, "share that the previous stage ranked high, above chance by at least this"),
    "pictures": (8, "number of pictures below which the numbers are rough"),
}
"""What raises a warning: name -> (threshold, meaning). Where there is an interval, it must exclude an even spread."""

SIDES = ("bottom", "top", "left", "right")


@dataclass(frozen=True)
class Finding:
    """One thing to know about what a method keeps.

    Attributes:
        level: "alarm", "warning", "note" or "good".
        kind: Identifier of the finding, for programs.
        text: The finding as sentences.
        remedy: What to do, as sentences.
        layer: Layer of the stage concerned; None if all stages are.
    """

    level: Level
    kind: str
    text: str
    remedy: str = ""
    layer: int | None = None

    def __str__(self) -> str:
        return f"{self.level}: {self.text}{' ' if self.remedy else ''}{self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def grouped(findings: Sequence[Finding]) -> list[tuple[Level, list[str], str]]:
    """Return (level, texts, remedy) for each group of findings that have level and remedy in common."""
    groups: dict[tuple[Level, str], list[str]] = {}
    for number, one in enumerate(findings):
        groups.setdefault((one.level, one.remedy or f"\0{number}"), []).append(one.text)
    return [(level, texts, "" if remedy[0] == "\0" else remedy) for (level, remedy), texts in groups.items()]


def judge(
    observations: Sequence[Observation], summaries: Sequence[StageSummary], schedule: Schedule, distinct: int
) -> list[Finding]:
    """Return all findings, the worst first.

    Args:
        observations: The pictures under the method.
        summaries: The numbers of every stage.
        schedule: The schedule that pruned.
        distinct: Number of different pictures.
    """
    traits = [StageTraits.of(stage) for stage in schedule]
    findings = list(_about_counts(observations, summaries, traits, distinct))
    inert = any(one.kind == "inert" for one in findings)
    for stage, summary in enumerate(summaries):
        if not inert and 0 < (summary.numbers["kept"].value or 0) < 1:
            fixed = any(one.kind == "fixed" and one.layer == summary.layer for one in findings)
            findings += _about_places(summary, traits[stage], fixed)
    if not any(one.level in ("alarm", "warning") for one in findings):
        text = (
            f"Nothing stands out in {len(observations)} pictures: the kept tokens are spread over the picture and not "
            "tied to fixed places beyond the limits below."
        )
        remedy = "This says where the kept tokens are, not that answers are right: measure the answers, too."
        findings.append(Finding("good", "well", text, remedy))
    if len(observations) < LIMITS["pictures"][0]:
        text = f"Only {len(observations)} pictures were observed: the numbers are rough."
        findings.append(Finding("note", "few", text, "Give more pictures."))
    for summary, pruned in zip(summaries, schedule, strict=True):
        if pruned.merge is not None:
            text = f"Tokens that leave at layer {summary.layer} are merged into kept tokens, which these maps hide."
            findings.append(Finding("note", "merged", text, layer=summary.layer))
        if pruned.leave != "drop":
            word = "wait for the next stage" if pruned.leave == "wait" else "are frozen and stay readable"
            text = f"Tokens that are not kept at layer {summary.layer} {word}; these maps show the tokens that run."
            findings.append(Finding("note", "held", text, layer=summary.layer))
    reasons = dict.fromkeys(summary.why_no_prior for summary in summaries if summary.why_no_prior)
    findings += [Finding("note", "no-prior", f"There is no RoPE prior to compare with. {reason}") for reason in reasons]
    return sorted(findings, key=lambda one: ("alarm", "warning", "good", "note").index(one.level))


def _about_counts(
    observations: Sequence[Observation],
    summaries: Sequence[StageSummary],
    traits: Sequence[StageTraits],
    distinct: int,
) -> Iterator[Finding]:
    """Yield whether anything was pruned, whether too much was, and whether pictures make a difference."""
    idle = sum(all(len(kept) == one.tokens for kept in one.kept) for one in observations)
    if idle == len(observations):
        text = "The pruner did nothing: every visual token was kept in every picture."
        yield Finding("alarm", "inert", text, "Keep fewer (`feathervlm methods NAME` lists the parameters).")
        return
    if idle:
        text = f"Every visual token was kept in {idle} of {len(observations)} pictures."
        yield Finding("warning", "sometimes-inert", text, "Keep a share rather than a number of tokens.")
    before = [one.tokens for one in observations]
    for stage, summary in enumerate(summaries):
        after = [len(one.kept[stage]) for one in observations]
        if not any(after) and traits[stage].drops:
            text = f"No visual token is kept from layer {summary.layer} on."
            remedy = "Later layers can use only what the text tokens have read before that layer."
            yield Finding("alarm", "blind", text, remedy, summary.layer)
            return
        if after == before and traits[stage].drops:
            text = f"The stage before layer {summary.layer} drops nothing."
            yield Finding("note", "idle-stage", text, layer=summary.layer)
        elif distinct > 1 and len({(one.tokens, one.kept[stage]) for one in observations}) == 1:
            by_design = not any(one.signals for one in traits[: stage + 1])
            yield Finding(
                "note" if by_design else "alarm",
                "fixed",
                f"The same fixed places are kept before layer {summary.layer} in every picture"
                + (", as this method does by design." if by_design else ": what is shown makes no difference."),
                "Fine as a baseline; a method with scores adapts." if by_design else traits[stage].remedy,
                summary.layer,
            )
        before = after if traits[stage].drops else before


def _about_places(summary: StageSummary, traits: StageTraits, fixed: bool) -> Iterator[Finding]:
    """Yield where the tokens of one stage lie."""
    numbers, layer = summary.numbers, summary.layer

    def limit(name: str) -> float:
        return LIMITS[name][0]

    def warn(kind: str, text: str, remedy: str = traits.remedy) -> Finding:
        return Finding("warning", kind, text, remedy, layer)

    for side in SIDES:
        number = numbers[side]
        if _above(number, limit("third")):
            yield warn(
                side, f"{_percent(number.value)} of the tokens kept before layer {layer} are in the {side} third of "
                "the picture (even: 33 %): localization will suffer for objects elsewhere.",
            )  # fmt: skip
    border = numbers["border"]
    if _above(border, limit("border") * (border.even or 1)):
        yield warn(
            "border", f"{_percent(border.value)} of the tokens kept before layer {layer} are at the picture's border "
            f"(even: {_percent(border.even)}).",
        )  # fmt: skip
    hole, empty = numbers["hole"], numbers["empty"]
    if _above(hole, max(limit("hole") * (hole.even or 0), limit("hole_least"))):
        yield warn(
            "hole", f"From layer {layer} on a square of {_percent(hole.value)} of the picture's side holds no token on "
            f"average (random tokens: {_percent(hole.even)}): a small object in it may be lost.",
        )  # fmt: skip
    if _above(empty, max(limit("empty") * (empty.even or 0), limit("empty_least"))):
        yield warn(
            "empty", f"From layer {layer} on {_percent(empty.value)} of the blocks of 3 x 3 cells hold no token "
            f"(random tokens: {_percent(empty.even)}).",
        )  # fmt: skip
    correlation = numbers.get("prior_correlation")
    if traits.rope and correlation is not None and _above(correlation, limit("prior")):
        yield warn(
            "prior", f"Before layer {layer} the kept tokens lie where the rotary embedding alone would put attention "
            f"(rank correlation {correlation.value:.2f} with its decay).",
        )  # fmt: skip
    alike = numbers["alike"]
    if not fixed and _above(alike, max(limit("alike"), (alike.even or 0) + limit("alike_more"))):
        yield warn(
            "alike", f"{_percent(alike.value)} of the tokens kept before layer {layer} are the same from picture to "
            f"picture (chance: {_percent(alike.even)}): place decides more than content.",
        )  # fmt: skip
    foreseen = numbers.get("foresight")
    if foreseen is not None and foreseen.value is not None and foreseen.even is not None:
        certain = foreseen.high is None or foreseen.high < foreseen.even + limit("foresight")
        if foreseen.even < 1 - limit("foresight") and foreseen.value < foreseen.even + limit("foresight") and certain:
            yield warn(
                "foresight", f"The stage before layer {layer} keeps tokens that the previous stage ranked low: "
                f"it had {_percent(foreseen.value)} of them among its best (chance: {_percent(foreseen.even)}).",
                "The previous stage chose hardly better than by chance: let it keep more tokens, or prune later.",
            )  # fmt: skip


def _above(number: Statistic, limit: float) -> bool:
    """Return whether a number exceeds its limit, and its interval, if there is one, excludes an even spread."""
    if number.value is None or number.value <= limit:
        return False
    return number.low is None or number.even is None or number.low > number.even


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"
