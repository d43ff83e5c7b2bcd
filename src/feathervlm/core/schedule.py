"""Stages and schedules: where in the depth which tokens leave.

A schedule is the whole definition of a training-free method. Layers may be given as fractions of the depth, so that
one schedule fits models of any depth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, get_args

from feathervlm.core.budget import ImageTokens
from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Picture, picture_of, tokens_of
from feathervlm.core.mergers.base import Merger
from feathervlm.core.positions import Positions
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import EncoderSignal, Representatives, Signal
from feathervlm.core.validation import check_seed, choose

Layer = int | float


Cached = Literal["later", "all"]


def check_layer(layer: Layer, name: str = "layer") -> None:
    """Raise `PruningError` unless `layer` is a 0-based index or a fraction of the depth in [0, 1)."""
    if isinstance(layer, bool) or not isinstance(layer, int | float) or not (0 <= layer < float("inf")):
        raise PruningError(f"{name}={layer!r} is neither a layer index (0, 1, ...) nor a fraction of the depth.")
    if isinstance(layer, float) and layer >= 1:
        raise PruningError(
            f"{name}={layer!r} is a fraction of the depth and must be below 1; for layer {int(layer)} "
            f"write {int(layer)}."
        )


def layer_index(layer: Layer, depth: int) -> int:
    """The 0-based layer that `layer` means in a model of `depth` layers; fractions round to the nearest, at least 1.

    Raises:
        PruningError: if the model is not that deep.

    >>> layer_index(0.25, 32), layer_index(3 / 32, 24), layer_index(3, 24), layer_index(0.0, 32)
    (8, 2, 3, 0)
    """
    if isinstance(layer, float):
        return min(max(int(layer * depth + 0.5), 1), depth - 1) if layer > 0 else 0
    if layer >= depth:
        raise PruningError(f"Layer {layer} is beyond this model's {depth} layers (0 to {depth - 1}).")
    return layer


@dataclass(frozen=True)
class Stage:
    """One pruning step: layers 0..at-1 see all tokens, tokens leave the tensor that enters `layers[at]`.

    Args:
        at: layer index, or fraction of the depth. 0 is before the language model.
        select: which tokens stay.
        positions: `preserve` original position ids, or move them from there on; see `feathervlm.core.positions`.
        merge: what becomes of the tokens that do not stay; None drops them.
        seed: of the permutation, if positions are to `shuffle`.
        cache: which layers forget the keys and values of tokens that leave: the "later" ones, which never see them, or
            "all", where what layers 0..at-1 have cached is cut to the tokens that stay as soon as they are chosen. The
            prompt itself has read all tokens there; what is generated then sees the same ones in every layer.
            Without a cache there is nothing to cut: the early layers see all tokens again at every step.
    """

    at: Layer
    select: Selector
    positions: Positions = "preserve"
    merge: Merger | None = None
    seed: int = 0
    cache: Cached = "later"

    def __post_init__(self) -> None:
        check_layer(self.at, "at")
        choose(self.positions, get_args(Positions), "positions")
        choose(self.cache, get_args(Cached), "cache")
        check_seed(self.seed)
        if not isinstance(self.select, Selector):
            raise PruningError(f"A stage needs a selector such as Top(...) or Grid(...), not {self.select!r}.")
        if self.merge is not None and not isinstance(self.merge, Merger):
            raise PruningError(f"A stage merges by a merger such as Pool(...), not by {self.merge!r}.")

    def signals(self) -> Iterator[Signal]:
        """Every signal that is read here."""
        yield from self.select.signals()
        if self.merge is not None:
            yield from self.merge.signals()


@dataclass(frozen=True, init=False)
class Schedule:
    """Stages in order of depth, and before them what happens inside the vision encoder.

    Args:
        stages: at least one where there is a tower; `Stage(0, KeepAll())` leaves the language model as it is.
        encoder: what the vision encoder merges; None leaves it alone.

    >>> from feathervlm.core.selectors.basic import Grid
    >>> Schedule(Stage(at=8, select=Grid(stride=3))).average_tokens([(1, 27, 27)], depth=32)
    243.0
    """

    stages: tuple[Stage, ...]
    encoder: EncoderMerging | None

    def __init__(self, *stages: Stage, encoder: EncoderMerging | None = None) -> None:
        for stage in stages:
            if not isinstance(stage, Stage):
                raise PruningError(f"A schedule is made of stages, not of {stage!r}.")
        if any(pair == ("renumber", "stretch") for pair in combinations([stage.positions for stage in stages], 2)):
            raise PruningError(
                "A stage stretches positions over a range that positions='renumber' has closed before; use one of them."
            )
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "encoder", encoder)
        self._check_tower()

    def _check_tower(self) -> None:
        inside = {signal for signal in self.signals() if isinstance(signal, EncoderSignal)}
        if self.encoder is None:
            if Representatives() in inside:
                raise PruningError(
                    "One token per group needs the groups of a tower: Schedule(..., encoder=BipartiteMerging())."
                )
            return
        if not isinstance(self.encoder, EncoderMerging):
            raise PruningError(
                f"A tower merges in the vision encoder, such as BipartiteMerging(...), not {self.encoder!r}."
            )
        if not self.stages:
            raise PruningError("A schedule with a tower needs a stage, too: Stage(0, KeepAll()) keeps every token.")
        if inside - {Representatives()}:
            raise PruningError(
                "Where the vision encoder merges patches, its attention and keys are not those of single patches; "
                "score with something else, or leave the tower out."
            )

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def signals(self) -> Iterator[Signal]:
        """Every signal that is read, by schedules inside this one, too."""
        for stage in self.stages:
            for signal in stage.signals():
                yield signal
                yield from signal.inner()

    def first_cut(self, depth: int) -> int:
        """The first layer whose cache of keys and values is cut, in a model of `depth` layers."""
        return 0 if any(stage.cache == "all" for stage in self.stages) else min(self.at_layers(depth), default=depth)

    def at_layers(self, depth: int) -> tuple[int, ...]:
        """The 0-based layer of every stage in a model of `depth` layers.

        Raises:
            PruningError: if a layer is beyond the depth, stages are out of order or fall on one layer, or a score
                is asked from a layer that does not exist.
        """
        layers = tuple(layer_index(stage.at, depth) for stage in self.stages)
        for before, after in pairwise(layers):
            if after <= before:
                found = ", ".join(map(str, layers))
                raise PruningError(f"The stages fall on layers {found} of {depth}; each must be deeper than the last.")
        for layer, stage in zip(layers, self.stages, strict=True):
            if layer == 0 and any(signal.reads_previous_layer for signal in stage.signals()):
                raise PruningError(
                    "A stage at layer 0 has no layer before it to score with; prune at layer 1 or later, or score with "
                    'layer="K".'
                )
        return layers

    def tokens_per_layer(self, grids: Sequence[Sequence[int] | Picture], depth: int) -> list[float]:
        """Expected visual tokens that every layer sees, for a sample with images of these (frames, rows, cols)."""
        images = [ImageTokens(picture, float(tokens_of(picture))) for picture in map(picture_of, grids)]
        starts = dict(zip(self.at_layers(depth), self.stages, strict=True))
        tokens = []
        for layer in range(depth):
            if layer in starts:
                images = [ImageTokens(i.picture, float(starts[layer].select.expected(i))) for i in images]
            tokens.append(sum(image.current for image in images))
        return tokens

    def average_tokens(self, grids: Sequence[Sequence[int] | Picture], depth: int) -> float:
        """Expected visual tokens per layer, averaged over all layers: the budget in which methods are compared."""
        tokens = self.tokens_per_layer(grids, depth)
        return sum(tokens) / len(tokens)
