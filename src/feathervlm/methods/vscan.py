"""VScan: a local and a global scan by the vision encoder, and a second stage in the middle of the language model."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from feathervlm.core import (
    IF_SET,
    Candidates,
    Criterion,
    EncoderSource,
    Features,
    ImageRows,
    ImageTokens,
    Keep,
    LastTokenAttention,
    Layer,
    Leave,
    Nearest,
    Schedule,
    Selector,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_fraction,
    check_int,
    check_keep,
    check_layers,
    first_n,
    kept,
    kept_tensor,
    part_of,
    part_of_each,
    rank_in_part,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class LocalScan(Selector):
    """Keep half of a budget: the best tokens of every window of window x window cells of a plane and frame.

    Rows and columns beyond the last whole window belong to it, so that no window is a narrow strip.

    Args:
        criterion: Criterion of the ranking.
        keep: The whole budget, a number or a fraction of the original tokens; half of it, rounded down, is spent here.
        window: Side of a window.
        share: Tokens of a window: "even", half the budget over the number of windows, rounded down; or "capped",
            rounded up, and the best of all windows up to half the budget.
    """

    criterion: Criterion
    keep: Keep
    window: int
    share: Literal["even", "capped"] = "even"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_int(self.window, "window")
        check_choice(self.share, ("even", "capped"), "share")

    def select(self, tokens: Candidates) -> Tensor:
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        window = part_of_each(images, "window", self.window, whole_windows=True)
        count = window.masked_fill(~images.exists, -1).amax(1, keepdim=True) + 1
        half = kept_tensor(self.keep, tokens.original()).flatten()[:, None] // 2
        each = (half if self.share == "even" else half + count - 1) // count.clamp(min=1)
        scores = images.take(tokens.score(self.criterion))
        within = images.present & (rank_in_part(images.present, window, scores) < each)
        return images.put(first_n([-scores], within, half[:, 0]))

    def expected(self, image: ImageTokens) -> float:
        return min(float(kept(self.keep, image.original) // 2), image.current)


@dataclass(frozen=True)
class VScan(Method):
    """Keep what a shallow encoder layer attends to in every window and a deep one anywhere, then prune again.

    Half of the first budget is scanned locally in the vision encoder, the other half by the deep layer among the
    remaining tokens; every other token is averaged into the most similar kept one. In the middle of the language model
    the attention of the last prompt token selects again, and the rest is dropped.

    Paper and code: there are two forms. `llava`: 6 x 6 windows with equal parts, [CLS] attention of encoder layer 5 of
    24 and of the last but one; later scores with RoPE; the authors renumber positions. `qwen`: 4 x 4 windows (of merged
    patches) with at most the rounded-up part each, attention received in the first full-attention block (7 of 32) and
    the last one; later scores without RoPE; positions are kept. The LLaVA code asserts 24 x 24 tokens and keeps fewer
    where half the budget is not a multiple of the number of windows; here any shape has windows, and the deep layer
    fills the budget in both forms. Features are averaged after the projector, as in the code.

    Args:
        layers: Tokens leave, and merge, before the first layer; the second stage is scored with its own attention.
        keep: Fraction or number of visual tokens kept by the two scans.
        then: Fraction of these kept at the second layer.
        form: `llava` or `qwen`.
        shallow: Encoder layer of the local scan, a number or a fraction of the depth; None for that of the form.
        deep: Encoder layer of the global scan; None for that of the form.
        window: Side of a window; None for that of the form.
        positions: `preserve` or `renumber`.
        leave: What becomes of the other tokens: `drop`, or, which is not in the paper, `wait` for the second stage or
            `freeze` with their keys and values readable; the second stage then chooses among all tokens as many as it
            would otherwise, and nothing is averaged.
    """

    name: ClassVar[str] = "vscan"
    paper: ClassVar[str] = "2505.22654 (TMLR 2026), Tencent/SelfEvolvingAgent"

    layers: tuple[Layer, Layer] = (0, 0.5)
    keep: Keep = 1 / 6
    then: float = 1 / 3
    form: Literal["llava", "qwen"] = "llava"
    shallow: int | float | None = None
    deep: int | float | None = None
    window: int | None = None
    positions: Literal["preserve", "renumber"] = "preserve"
    leave: Leave = field(default="drop", metadata=IF_SET)

    def schedule(self) -> Schedule:
        check_choice(self.form, ("llava", "qwen"), "form")
        check_choice(self.positions, ("preserve", "renumber"), "positions")
        check_choice(self.leave, ("drop", "wait", "freeze"), "leave")
        check_keep(self.keep)
        check_fraction(self.then, "then")
        check_layers(self.layers, "0+16", count=2)
        llava = self.form == "llava"
        shallow, deep, window = (5 / 24, -2, 6) if llava else (7 / 32, -1, 4)
        source: EncoderSource = "cls" if llava else "received"
        local = VisionAttention(shallow if self.shallow is None else self.shallow, source)
        everywhere = VisionAttention(deep if self.deep is None else self.deep, source)
        window = window if self.window is None else self.window
        scan = LocalScan(local, self.keep, window, "even" if llava else "capped") >> Top(everywhere, self.keep)
        last = LastTokenAttention(rope=llava, over="all", layer="K")
        first, second = self.layers
        if self.leave != "drop":
            later = Top(last, part_of(self.keep, self.then))
            return Schedule(
                Stage(first, scan, self.positions, leave=self.leave),
                Stage(second, later, self.positions, leave="drop" if self.leave == "wait" else self.leave),
            )
        return Schedule(
            Stage(first, scan, self.positions, merge=Nearest(Features("projected"))),
            Stage(second, Top(last, self.then, of="current"), self.positions),
        )
