"""What the numbers of a diagnosis mean, in plain words: what looks wrong, and what to do about it.

All thresholds are in one table. Knows numbers and schedules; measures nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.selectors.base import Selector
from feathervlm.core.selectors.basic import Grid
from feathervlm.core.signals import Attention
from feathervlm.diagnosis.summary import Number, Pictures, Spread

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
    "foresight": (0.1, "what the stage before foresaw must exceed chance by this"),
    "pictures": (8, "fewer pictures say little"),
}
"""What raises a warning: name, (threshold, meaning). An interval, if there is one, lies beyond the even spread, too."""

SIDES = ("bottom", "top", "left", "right")


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        level: "alarm", "warning", "note" or "good".
        kind: a word for it, for programs.
        text: what was found.
        remedy: what to do.
        layer: of the stage that it is about; None: of all.
    """

    level: Level
    kind: str
    text: str
    remedy: str = ""
    layer: int | None = None

    def __str__(self) -> str:
        return f"{self.level}: {self.text}{' ' if self.remedy else ''}{self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def grouped(findings: Sequence[Finding]) -> list[tuple[Level, list[str], str]]:
    """Level, texts and remedy of findings that ask for the same, so that it need not be said again and again."""
    groups: dict[tuple[Level, str], list[str]] = {}
    for number, one in enumerate(findings):
        groups.setdefault((one.level, one.remedy or f"\0{number}"), []).append(one.text)
    return [(level, texts, "" if remedy[0] == "\0" else remedy) for (level, remedy), texts in groups.items()]


@dataclass(frozen=True)
class Traits:
    """What a stage goes by: attention, rotated attention, a uniform grid, anything of the model at all."""

    attention: bool
    rope: bool
    grid: bool
    looks: bool

    @classmethod
    def of(cls, stage: Stage) -> "Traits":
        """Those of a stage, and of a schedule whose survivors it keeps."""
        signals, selectors = list(stage.signals()), list(_selectors(stage.select))
        for signal in signals:
            if isinstance(signal, Survivors):
                inner = [Traits.of(one) for one in signal.schedule]
                return cls(*(any(getattr(one, field.name) for one in inner) for field in fields(cls)))
        attention = [signal for signal in signals if isinstance(signal, Attention)]
        rope = any(signal.rope for signal in attention)
        return cls(bool(attention), rope, any(isinstance(one, Grid) for one in selectors), bool(signals))

    @property
    def remedy(self) -> str:
        """What to try where tokens lie in the wrong places."""
        ways = ["score without RoPE (fastv:rope=false, feather)"] if self.rope else []
        ways += [] if self.grid else ["keep a uniform grid beside the best tokens (ensemble, feather)"]
        ways += ["prune at a later layer, whose scores are better"] if self.attention else []
        sentence = ", or ".join(ways or ["keep more tokens"])
        return f"{sentence[0].upper()}{sentence[1:]}."


def _selectors(selector: Selector) -> Iterator[Selector]:
    yield selector
    for parameter in fields(selector):  # type: ignore[arg-type]  # selectors are dataclasses
        value = getattr(selector, parameter.name)
        if isinstance(value, Selector):
            yield from _selectors(value)


def judge(pictures: Pictures, spreads: Sequence[Spread], schedule: Schedule, distinct: int) -> list[Finding]:
    """All there is to say, the worst first.

    Args:
        pictures: what was seen.
        spreads: of every stage.
        schedule: that pruned.
        distinct: how many different pictures there were.
    """
    traits = [Traits.of(stage) for stage in schedule]
    found = list(_about_counts(pictures, spreads, traits, distinct))
    inert = any(one.kind == "inert" for one in found)
    for stage, spread in enumerate(spreads):
        if not inert and 0 < (spread.numbers["kept"].value or 0) < 1:
            fixed = any(one.kind == "fixed" and one.layer == spread.layer for one in found)
            found += _about_places(spread, traits[stage], fixed)
    if not any(one.level in ("alarm", "warning") for one in found):
        found.append(
            Finding(
                "good", "well", f"Nothing stands out in {len(pictures.seen)} pictures: what is kept is spread over the "
                "picture and not tied to fixed places beyond the limits below.",
                "This says where tokens are, not that answers are right: measure these, too.",
            )
        )  # fmt: skip
    if len(pictures.seen) < LIMITS["pictures"][0]:
        text = f"Only {len(pictures.seen)} pictures were looked at: the numbers are rough."
        found.append(Finding("note", "few", text, "Give more."))
    for spread, pruned in zip(spreads, schedule, strict=True):
        if pruned.merge is not None:
            text = f"Tokens that leave at layer {spread.layer} are merged into those that stay, which these maps hide."
            found.append(Finding("note", "merged", text, layer=spread.layer))
    reasons = dict.fromkeys(spread.why_no_prior for spread in spreads if spread.why_no_prior)
    found += [Finding("note", "no-prior", f"There is no RoPE prior to compare with. {reason}") for reason in reasons]
    return sorted(found, key=lambda one: ("alarm", "warning", "good", "note").index(one.level))


def _about_counts(
    pictures: Pictures, spreads: Sequence[Spread], traits: Sequence[Traits], distinct: int
) -> Iterator[Finding]:
    """Whether anything was pruned, whether too much was, and whether pictures make a difference."""
    seen = pictures.seen
    idle = sum(not one.kept or len(one.kept[-1]) == one.tokens for one in seen)
    if idle == len(seen):
        yield Finding(
            "alarm", "inert", "The pruner did nothing: every visual token was kept in every picture.",
            "Keep fewer (`feathervlm methods NAME` lists the parameters).",
        )  # fmt: skip
        return
    if idle:
        text = f"Every visual token was kept in {idle} of {len(seen)} pictures."
        yield Finding("warning", "sometimes-inert", text, "Keep a share rather than a number of tokens.")
    before = [one.tokens for one in seen]
    for stage, spread in enumerate(spreads):
        left = [len(one.kept[stage]) for one in seen]
        if not any(left):
            yield Finding(
                "alarm", "blind", f"No visual token is left from layer {spread.layer} on.",
                "What later layers answer is read from what the text has taken over before.", spread.layer,
            )  # fmt: skip
            return
        if left == before:
            text = f"The stage before layer {spread.layer} drops nothing."
            yield Finding("note", "idle-stage", text, layer=spread.layer)
        elif distinct > 1 and len({(one.tokens, one.kept[stage]) for one in seen}) == 1:
            by_design = not any(one.looks for one in traits[: stage + 1])
            yield Finding(
                "note" if by_design else "alarm",
                "fixed",
                f"The same fixed places are kept before layer {spread.layer} in every picture"
                + (", as this method does by design." if by_design else ": what is shown makes no difference."),
                "Fine as a baseline; a method with scores adapts." if by_design else traits[stage].remedy,
                spread.layer,
            )
        before = left


def _about_places(spread: Spread, traits: Traits, fixed: bool) -> Iterator[Finding]:
    """Where one stage's tokens lie."""
    numbers, layer = spread.numbers, spread.layer

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
    follows = numbers.get("prior_correlation")
    if traits.rope and follows is not None and _above(follows, limit("prior")):
        yield warn(
            "prior", f"Before layer {layer} tokens are kept where the rotary embedding alone would look (rank "
            f"correlation {follows.value:.2f} with its decay).",
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
                "foresight", f"The stage before layer {layer} chooses tokens that the stage before it did not rank "
                f"high: it foresaw {_percent(foreseen.value)} of them (chance: {_percent(foreseen.even)}).",
                "What the earlier stage dropped was hardly better chosen than by lot: let it keep more or prune later.",
            )  # fmt: skip


def _above(number: Number, limit: float) -> bool:
    """Whether a number is beyond its limit, and surely beyond an even spread."""
    if number.value is None or number.value <= limit:
        return False
    return number.low is None or number.even is None or number.low > number.even


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"
