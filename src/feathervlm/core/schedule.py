"""Stages and schedules: at which depth which tokens leave.

A schedule defines a training-free method completely. Layers may be given as fractions of the depth, so that one
schedule fits models of any depth.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

from feathervlm.core.budget import ImageTokens, Keep, check_keep, kept
from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Picture, picture_of, tokens_of
from feathervlm.core.mergers.base import Merger
from feathervlm.core.mergers.waiting import STATES
from feathervlm.core.positions import Positions
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Representatives, Signal
from feathervlm.core.validation import check_choice, check_seed

Layer = int | float
"""A layer of the language model: a 0-based index, or a fraction of the depth in [0, 1)."""
Place = Layer | Literal["end"]
"""Where a stage is: before a layer, or after the last one."""
Cached = Literal["later", "all"]
Leave = Literal["drop", "wait", "freeze"]
"""What becomes of tokens that a stage does not keep; see `Stage`."""
Update = Literal["group"]
Half = Literal["mlp", "attention"]
END = "end"

IF_SET = {"written": "if set"}
"""Metadata of a field that the written form leaves out where it has its default."""


def check_layer(layer: Layer, name: str = "layer") -> None:
    """Raise `PruningError` unless `layer` is a 0-based index or a fraction of the depth in [0, 1)."""
    if isinstance(layer, bool) or not isinstance(layer, int | float) or not (0 <= layer < float("inf")):
        raise PruningError(f"{name}={layer!r} is neither a layer index (0, 1, ...) nor a fraction of the depth.")
    if isinstance(layer, float) and layer >= 1:
        raise PruningError(
            f"{name}={layer!r} is a fraction of the depth and must be below 1; for layer {int(layer)} "
            f"write {int(layer)}."
        )


def check_layers(layers: object, example: str, count: int | None = None, name: str = "layers") -> None:
    """Raise `PruningError` unless `layers` is a list of layers, of the length `count` if that is given."""
    if not isinstance(layers, tuple | list) or not layers or (count is not None and len(layers) != count):
        expected = "a list of layers" if count is None else f"{count} layers"
        raise PruningError(f"{name}={layers!r} must be {expected}, such as {example}.")


def layer_index(layer: Layer, depth: int) -> int:
    """Return the 0-based layer for a model of `depth` layers; fractions are rounded to the nearest layer, at least 1.

    Raises:
        PruningError: If the model is not that deep.

    >>> layer_index(0.25, 32), layer_index(3 / 32, 24), layer_index(3, 24), layer_index(0.0, 32)
    (8, 2, 3, 0)
    """
    if isinstance(layer, float):
        return min(max(int(layer * depth + 0.5), 1), depth - 1) if layer > 0 else 0
    if layer >= depth:
        raise PruningError(f"Layer {layer} is beyond this model's {depth} layers (0 to {depth - 1}).")
    return layer


class ScheduleFormat(Protocol):
    """A written form of schedules, such as `feathervlm.core.spec`."""

    def to_json(self, schedule: "Schedule") -> str:
        """Write a schedule as a JSON document."""
        ...

    def from_json(self, text: str) -> "Schedule":
        """Read a schedule from a JSON document."""
        ...


@dataclass(frozen=True)
class Stage:
    """One pruning step: layers 0..at-1 see all tokens, tokens leave the tensor that enters `layers[at]`.

    Args:
        at: Layer index, or fraction of the depth. 0 is before the language model. "end" is after the last layer: the
            prompt has been read, and only the caches are cut (`cache="all"`).
        select: Selector of the tokens that run on.
        positions: Policy for position ids from this stage on, see `feathervlm.core.positions`.
        merge: Merger that adds the other tokens to those that stay; None drops them.
        seed: Seed of the permutation for `positions="shuffle"`.
        cache: Layers whose cached keys and values are cut: "later", the layers that never see the dropped tokens, or
            "all", also layers 0..at-1 as soon as the tokens are chosen. With "all" the prompt has read every token in
            the early layers, and generated tokens see the same tokens in every layer. Without a cache there is nothing
            to cut, and the early layers see all tokens at every step.
        leave: What becomes of the other tokens up to the next stage. "drop" removes them for ever. With "wait" they
            are in no layer, and with "freeze" layers make their keys and values but no query and no update; both are
            candidates of the next stage together with the tokens that ran.
        update: With `leave="wait"`, None lets tokens come back as they left. "group" (SwiftVLM, arXiv 2602.03134)
            lets the means of `groups` groups of similar tokens run in their place, each in the row of the member
            nearest to it, and adds to every member the change of its group's mean when it comes back.
        groups: With `update="group"`, number or fraction of the original tokens that groups are made of.
        skip: With `leave="freeze"`, the half of each layer that the other tokens skip: None skips both, "mlp" lets
            them attend, and "attention" gives them the MLP alone. Their keys and values are read in any case.
    """

    at: Place
    select: Selector
    positions: Positions = "preserve"
    merge: Merger | None = None
    seed: int = 0
    cache: Cached = "later"
    leave: Leave = field(default="drop", metadata=IF_SET)
    update: Update | None = field(default=None, metadata=IF_SET)
    groups: Keep = field(default=18, metadata=IF_SET)
    skip: Half | None = field(default=None, metadata=IF_SET)

    def __post_init__(self) -> None:
        if not isinstance(self.at, str):
            check_layer(self.at, "at")
        elif self.at != END:
            raise PruningError(f"at={self.at!r} is neither a layer nor {END!r}.")
        check_choice(self.positions, get_args(Positions), "positions")
        check_choice(self.cache, get_args(Cached), "cache")
        check_seed(self.seed)
        if not isinstance(self.select, Selector):
            raise PruningError(f"select={self.select!r} must be a selector such as Top(...) or Grid(...).")
        if self.merge is not None and not isinstance(self.merge, Merger):
            raise PruningError(f"merge={self.merge!r} must be a merger such as Pool(...), or None.")
        self._check_mode()

    def _check_mode(self) -> None:
        check_choice(self.leave, get_args(Leave), "leave")
        check_keep(self.groups, "groups")
        for name, value, choices, leave in (
            ("update", self.update, get_args(Update), "wait"),
            ("skip", self.skip, get_args(Half), "freeze"),
        ):
            if value is not None:
                check_choice(value, choices, name)
                if self.leave != leave:
                    raise PruningError(f"{name}={value!r} needs leave={leave!r}, not leave={self.leave!r}.")
        if self.leave != "drop":
            for field_name, needed in (("positions", "preserve"), ("merge", None), ("cache", "later")):
                if getattr(self, field_name) != needed:
                    raise PruningError(f"leave={self.leave!r} keeps tokens, so it takes {field_name}={needed!r} only.")
        if self.at == END and (self.cache, self.merge, self.positions, self.leave) != ("all", None, "preserve", "drop"):
            raise PruningError(
                "A stage at='end' cuts caches and nothing else; give it cache='all', and no merge=, positions= or "
                "leave=."
            )

    def layer(self, depth: int) -> int:
        """Return the 0-based layer that tokens leave before in a model of `depth` layers; `depth` for the end.

        Raises:
            PruningError: If the layer is beyond the depth.
        """
        return depth if isinstance(self.at, str) else layer_index(self.at, depth)

    def signals(self) -> Iterator[Signal]:
        """Yield every signal that the selector and the merger read."""
        yield from self.select.signals()
        if self.merge is not None:
            yield from self.merge.signals()
        if self.update is not None:
            yield STATES


class HasMode(Protocol):
    """A stage, or a report on one: it says what becomes of the tokens that it does not keep."""

    @property
    def leave(self) -> Leave:
        """Whether they are dropped, wait or are frozen."""
        ...

    @property
    def skip(self) -> Half | None:
        """The half of each layer that frozen tokens skip; None if they skip both."""
        ...


class ModeTokens(NamedTuple):
    """Visual tokens in one layer, by what the layer does with them.

    Attributes:
        running: Number of tokens with a query, keys, values and an update. The means of groups count.
        frozen: Number of tokens with keys and values, and no update or (`half`) a part of one.
        waiting: Number of tokens that are not in the layer and may come back.
        half: The half of the layer that frozen tokens skip; None if they skip both.
    """

    running: float
    frozen: float = 0.0
    waiting: float = 0.0
    half: Half | None = None

    @classmethod
    def of(cls, stage: "HasMode", kept: float, left: float, groups: float = 0.0) -> "ModeTokens":
        """Return what a stage makes of the tokens that it keeps, of the others, and of the groups of these."""
        if stage.leave == "freeze":
            return cls(kept, frozen=left, half=stage.skip)
        return cls(kept + groups, waiting=left if stage.leave == "wait" else 0.0)


@dataclass(frozen=True, init=False)
class Schedule:
    """Stages in order of depth, and optionally merging inside the vision encoder.

    Args:
        stages: Pruning steps; with `encoder` at least one, such as `Stage(0, KeepAll())`, which keeps every token.
        encoder: Merging inside the vision encoder; None leaves the encoder unchanged.

    Raises:
        PruningError: If the parts contradict each other.

    >>> from feathervlm.core.selectors.basic import Grid
    >>> Schedule(Stage(at=8, select=Grid(stride=3))).average_tokens([(1, 27, 27)], depth=32)
    243.0
    """

    stages: tuple[Stage, ...]
    encoder: EncoderMerging | None
    format: ClassVar[ScheduleFormat]
    """The written form, which the core sets to `feathervlm.core.spec`."""

    def __init__(self, *stages: Stage, encoder: EncoderMerging | None = None) -> None:
        for stage in stages:
            if not isinstance(stage, Stage):
                raise PruningError(f"{stage!r} is not a Stage; a schedule is made of stages.")
        if any(pair == ("renumber", "stretch") for pair in combinations([stage.positions for stage in stages], 2)):
            raise PruningError(
                "positions='stretch' after positions='renumber' has no range to stretch over; use one of them."
            )
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "encoder", encoder)
        self._check_modes()
        self._check_encoder()

    def _check_modes(self) -> None:
        if any(stage.at == END and any(signal.reads_own_layer for signal in stage.signals()) for stage in self.stages):
            raise PruningError(
                "A stage at='end' has no layer after it to score with; score with the layer before it, layer=\"K-1\"."
            )
        for before, stage in pairwise(self.stages):
            signals = list(stage.signals())
            if before.leave == "wait" and any(signal.reads_previous_layer for signal in signals):
                raise PruningError(
                    "The layer before a stage has not seen the tokens that wait for it (leave='wait'); score the stage "
                    'after a waiting one with its own layer, layer="K".'
                )
            if before.leave == "freeze" and any(signal.of_updated for signal in signals):
                raise PruningError(
                    "Frozen tokens have no update (leave='freeze'), so the stage after them cannot read states inside "
                    "the layer before it; score with attention or features."
                )
        held = next((stage.leave for stage in self.stages if stage.leave != "drop"), None)
        if held == "wait" and any(stage.cache == "all" for stage in self.stages):
            raise PruningError(
                "cache='all' needs keys of every kept token in every layer, which tokens that waited do not have; use "
                "leave='drop' or leave='freeze'."
            )
        if held and any(stage.positions != "preserve" for stage in self.stages):
            raise PruningError(
                f"Tokens that come back keep their positions: leave={held!r} takes positions='preserve'."
            )

    def _check_encoder(self) -> None:
        inside = {signal for signal in self.signals() if signal.in_encoder}
        if self.encoder is None:
            if Representatives() in inside:
                raise PruningError(
                    "OnePerGroup needs the groups of merging in the vision encoder; add encoder=BipartiteMerging(...)."
                )
            return
        if not isinstance(self.encoder, EncoderMerging):
            raise PruningError(f"encoder={self.encoder!r} must merge in the encoder, as BipartiteMerging(...) does.")
        if not self.stages:
            raise PruningError("A schedule with encoder= needs a stage; Stage(0, KeepAll()) keeps every token.")
        if inside - {Representatives()}:
            raise PruningError(
                "Where the vision encoder merges patches, its attention and keys are not those of single patches; "
                "score with another signal, or leave encoder= out."
            )

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def signals(self) -> Iterator[Signal]:
        """Yield every signal that is read, by schedules inside this one as well."""
        for stage in self.stages:
            for signal in stage.signals():
                yield signal
                yield from signal.inner()

    def first_cut(self, depth: int) -> int:
        """Return the first layer whose cached keys and values are cut, in a model of `depth` layers."""
        return 0 if any(stage.cache == "all" for stage in self.stages) else min(self.at_layers(depth), default=depth)

    def at_layers(self, depth: int) -> tuple[int, ...]:
        """Return the 0-based layer of every stage in a model of `depth` layers; `depth` for the end.

        Raises:
            PruningError: If a layer is beyond the depth, two stages are out of order or fall on one layer, or a stage
                at layer 0 is to be scored with the layer before it.
        """
        layers = tuple(stage.layer(depth) for stage in self.stages)
        if any(after <= before for before, after in pairwise(layers)):
            listed = ", ".join(map(str, layers))
            raise PruningError(f"The stages fall on layers {listed} of {depth}; each must be deeper than the last.")
        for layer, stage in zip(layers, self.stages, strict=True):
            if layer == 0 and any(signal.reads_previous_layer for signal in stage.signals()):
                raise PruningError(
                    "A stage at layer 0 has no layer before it to score with; prune at layer 1 or later, or score with "
                    'layer="K".'
                )
        return layers

    def tokens_by_mode(self, grids: Sequence[Sequence[int] | Picture], depth: int) -> list[ModeTokens]:
        """Return the expected number of visual tokens of every mode in every layer.

        Args:
            grids: (frames, rows, cols) of the images.
            depth: Number of layers of the language model.
        """
        images = [ImageTokens(picture, float(tokens_of(picture))) for picture in map(picture_of, grids)]
        starts = dict(zip(self.at_layers(depth), self.stages, strict=True))
        layers, now = [], ModeTokens(sum(image.current for image in images))
        for layer in range(depth):
            if layer in starts:
                stage = starts[layer]
                stays = [float(stage.select.expected(image)) for image in images]
                left = [image.current - count for image, count in zip(images, stays, strict=True)]
                if stage.leave == "drop":
                    images = [ImageTokens(i.picture, count) for i, count in zip(images, stays, strict=True)]
                groups = 0.0
                if stage.update is not None:
                    groups = sum(
                        min(float(kept(stage.groups, image.original)), count)
                        for image, count in zip(images, left, strict=True)
                    )
                now = ModeTokens.of(stage, sum(stays), sum(left), groups)
            layers.append(now)
        return layers

    def tokens_per_layer(self, grids: Sequence[Sequence[int] | Picture], depth: int) -> list[float]:
        """Return the expected number of visual tokens that run in every layer, for images of these
        (frames, rows, cols); `tokens_by_mode` also counts frozen and waiting ones.
        """
        return [tokens.running for tokens in self.tokens_by_mode(grids, depth)]

    def average_tokens(self, grids: Sequence[Sequence[int] | Picture], depth: int) -> float:
        """Return the expected number of visual tokens that run per layer, averaged over all layers: the budget of a
        method. Tokens that are frozen or wait do not count.
        """
        tokens = self.tokens_per_layer(grids, depth)
        return sum(tokens) / len(tokens)

    def fingerprint(self) -> str:
        """Return a hash of the schedule, the same on every machine; schedules that differ have different ones.

        Raises:
            PruningError: If the schedule cannot be written down.
        """
        return hashlib.sha256(self.format.to_json(self).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the schedule to a JSON file, which `Schedule.load` and `--method FILE.json` read.

        Args:
            path: The file, with the suffix `.json`; an existing file is overwritten.

        Raises:
            PruningError: If the path has another suffix or cannot be written, or the schedule cannot be written down.
        """
        path = _json_file(path)
        text = self.format.to_json(self)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise PruningError(f"{path} cannot be written: {error.strerror}; choose another place.") from None

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Read a schedule from a JSON file that `save` wrote.

        Raises:
            PruningError: If the path has another suffix, cannot be read, or does not hold a schedule of this version.
        """
        path = _json_file(path)
        try:
            if path.exists() and not path.is_file():
                raise PruningError(f"{path} is not a regular file; give a file of Schedule.save().")
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise PruningError(f"{path} cannot be read: {error.strerror}; give a file of Schedule.save().") from None
        except UnicodeDecodeError:
            raise PruningError(f"{path} is not a text file; give a file of Schedule.save().") from None
        try:
            return cls.format.from_json(text)
        except PruningError as error:
            raise PruningError(f"{path}: {error}") from None


def _json_file(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise PruningError(f"{path} must be a file with the suffix .json.")
    return path
