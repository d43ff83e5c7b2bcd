"""VScan: a local and a global look of the vision encoder before the language model, its own attention in the middle."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core import (
    Candidates,
    Criterion,
    EncoderSource,
    Features,
    ImageRows,
    ImageTokens,
    Keep,
    LastTokenAttention,
    Layer,
    Nearest,
    PruningError,
    Schedule,
    Selector,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_fraction,
    check_int,
    check_keep,
    first_n,
    kept,
    kept_tensor,
    lexsort,
    rank_in_part,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class LocalScan(Selector):
    """Half of a budget, the best tokens of every window of window x window cells of a plane and frame.

    What is left of a row or column at the border belongs to the last window, so that none is a sliver.

    Args:
        criterion: by which tokens are ranked.
        keep: the whole budget, a number or a fraction of the original tokens; half of it, rounded down, is spent here.
        window: side of a window.
        share: of a window: "even", half the budget over the number of windows, rounded down; or "capped", rounded up,
            and the best of all windows up to half the budget.
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
        """The best of the windows."""
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        window = self._windows(images)
        count = window.masked_fill(~images.exists, -1).amax(1, keepdim=True) + 1
        half = kept_tensor(self.keep, tokens.original()).flatten()[:, None] // 2
        each = (half if self.share == "even" else half + count - 1) // count.clamp(min=1)
        scores = images.take(tokens.score(self.criterion))
        within = images.present & (rank_in_part(images.present, window, scores) < each)
        return images.put(first_n([-scores], within, half[:, 0]))

    def _windows(self, images: ImageRows) -> Tensor:
        """The window of every token, numbered within its image: long (images, n); anything on padding."""
        geometry = images.tokens.geometry
        plane, frame, row, col = (
            images.take(part).masked_fill(~images.exists, 0)
            for part in (geometry.plane, geometry.frame, geometry.row, geometry.col)
        )
        ends = [torch.zeros_like(side).scatter_reduce(1, plane, side, "amax").gather(1, plane) for side in (row, col)]
        row, col = (
            (side // self.window).minimum(((end + 1) // self.window - 1).clamp(min=0))
            for side, end in zip((row, col), ends, strict=True)
        )
        parts = [(~images.exists).long(), plane, frame, row, col]
        order = lexsort(parts)
        aligned = torch.stack(parts).gather(2, order.expand(len(parts), -1, -1))
        starts = torch.zeros_like(order)
        starts[:, 1:] = (aligned[..., 1:] != aligned[..., :-1]).any(0)
        return torch.zeros_like(order).scatter(1, order, starts.cumsum(1))

    def expected(self, image: ImageTokens) -> float:
        """Half the budget, which small windows may not reach."""
        return min(float(kept(self.keep, image.original) // 2), image.current)


@dataclass(frozen=True)
class VScan(Method):
    """Keep what a shallow encoder layer looks at in every window and a deep one anywhere, then prune again.

    Half of the first budget is scanned locally in the vision encoder, the other half by the deep layer among what is
    left; every other token is averaged into the most similar kept one. In the middle of the language model the last
    prompt token's attention chooses again, and the rest is dropped.

    Paper and code: two forms. `llava`: 6 x 6 windows with equal parts, [CLS] attention of encoder layer 5 of 24 and
    of the last but one; later scores with RoPE; the authors give new, compact positions. `qwen`: 4 x 4 windows (of
    merged patches) with at most the rounded-up part each, attention received in the first full-attention block (7 of
    32) and the last one; later scores without RoPE; positions are kept. The LLaVA code asserts 24 x 24 tokens and keeps
    fewer where half the budget is no multiple of the number of windows; here any shape has windows, and the deep layer
    fills the budget up in both forms. Features are averaged after the projector, as in the code.

    Args:
        layers: tokens leave, and merge, before the first; the second is scored with its own attention.
        keep: fraction or number of visual tokens kept by the two scans.
        then: fraction of these kept at the second layer.
        form: `llava` or `qwen`.
        shallow: layer of the encoder for the local scan, a number or a fraction of its depth; that of the form if not
            given.
        deep: layer of the encoder for the global scan; that of the form if not given.
        window: side of a window; that of the form if not given.
        positions: `preserve` or `renumber`.
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

    def schedule(self) -> Schedule:
        """Local and global scan, then the last token's attention."""
        check_choice(self.form, ("llava", "qwen"), "form")
        check_choice(self.positions, ("preserve", "renumber"), "positions")
        check_keep(self.keep)
        check_fraction(self.then, "then")
        if not isinstance(self.layers, tuple | list) or len(self.layers) != 2:
            raise PruningError(f"layers={self.layers!r} must be two layers, such as 0+16.")
        llava = self.form == "llava"
        shallow, deep, window = (5 / 24, -2, 6) if llava else (7 / 32, -1, 4)
        source: EncoderSource = "cls" if llava else "received"
        local = VisionAttention(shallow if self.shallow is None else self.shallow, source)
        everywhere = VisionAttention(deep if self.deep is None else self.deep, source)
        window = window if self.window is None else self.window
        scan = LocalScan(local, self.keep, window, "even" if llava else "capped") >> Top(everywhere, self.keep)
        last = LastTokenAttention(rope=llava, over="all", layer="K")
        first, second = self.layers
        return Schedule(
            Stage(first, scan, self.positions, merge=Nearest(Features("projected"))),
            Stage(second, Top(last, self.then, of="current"), self.positions),
        )
