"""What a specimen is: a tiny random model of a family, and pictures in the form that its processor gives them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tiny_models as tiny
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import Attention, EncoderSignal, LayerSignal, LayerStates, Signal
from method_cases import METHODS

IMAGE, VIDEO, START, END = tiny.IMAGE, 291, 292, 293
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
}


@dataclass
class Shot:
    """One picture (or video): its part of the prompt and its tensors."""

    ids: list[int]
    tensors: dict[str, Tensor]
    token: int = IMAGE


Sample = tuple[list[int], list[Shot]]


def inside(says: str) -> dict[str, str]:
    """Refuses the rows of the shared table that read what goes on inside the vision encoder."""
    return reading(lambda signal: isinstance(signal, EncoderSignal), says)


def ahead(says: str) -> dict[str, str]:
    """Refuses the rows of the shared table that score with the layer about to run."""
    return reading(lambda signal: isinstance(signal, Attention) and signal.layer == "K", says)


def behind(bad: Callable[[int], bool], says: str) -> dict[str, str]:
    """Refuses the rows of the shared table that score with the layer that has run before a stage at a bad layer."""

    def reads(signal: Signal, at: int) -> bool:
        if isinstance(signal, Survivors):
            return any(reads(inner, stage.at) for stage in signal.schedule for inner in stage.signals())
        source = signal.measured
        return isinstance(source, LayerSignal) and getattr(source, "layer", "K-1") == "K-1" and bad(at)

    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: says for name, stage in stages if any(reads(signal, stage.at) for signal in stage.signals())}


def halfway() -> dict[str, str]:
    """Refuses the rows of the shared table that read what is between the attention of a layer and what follows."""
    return reading(lambda signal: signal == LayerStates("middle"), "has no norm after its attention")


def reading(which: Callable[[Signal], bool], says: str) -> dict[str, str]:
    """Refuses the rows of the shared table that read such a signal."""
    return {name: says for name, method in METHODS.items() if any(map(which, method.schedule().signals()))}


def renumbering() -> dict[str, str]:
    """Refuses the rows of the shared table that renumber positions."""
    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: "positions='preserve'" for name, stage in stages if stage.positions == "renumber"}


def merging(last: int) -> dict[str, str]:
    """Refuses the rows of the shared table that merge at this layer or before."""
    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: f"merge at layer {last + 1} or later" for name, stage in stages if stage.merge and stage.at <= last}


def join(samples: list[list[Shot]]) -> dict[str, Tensor]:
    """All pictures one after the other."""
    shots = [shot for sample in samples for shot in sample]
    keys = dict.fromkeys(key for shot in shots for key in shot.tensors)
    return {key: torch.cat([shot.tensors[key] for shot in shots if key in shot.tensors]) for key in keys}


def plain(inputs: dict[str, Tensor], extra: int) -> dict[str, Tensor]:
    """Nothing to add."""
    return inputs


def mark_types(inputs: dict[str, Tensor], extra: int) -> dict[str, Tensor]:
    """Which tokens are images (1) and videos (2)."""
    ids = inputs["input_ids"]
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


@dataclass(eq=False)
class Specimen:
    """A row of the family table.

    Attributes:
        make: the model, given an attention implementation.
        shot: the picture with a number; other numbers have other contents and, where the family allows, sizes.
        join: tensors of a batch from the pictures of each sample.
        finish: further inputs that follow from the ids, of which so many last ones were generated.
        layers: two layers that can score and prune.
        attention: implementations to test.
        refuses: methods (rows of the shared table) that must be refused, and what the refusal says.
        state: some layers carry a state instead of keys, so no mask can hide a token from them.
        rotates: some layer rotates, so positions matter.
        static: a static cache can be pruned; otherwise it must be refused.
        several: prompts may hold more than one picture.
        mixed: batches may hold prompts without pictures.
        tolerance: between two ways to compute the same.
    """

    name: str
    make: Callable[[str], torch.nn.Module]
    shot: Callable[[int], Shot]
    join: Callable[[list[list[Shot]]], dict[str, Tensor]] = join
    finish: Callable[[dict[str, Tensor], int], dict[str, Tensor]] = plain
    layers: tuple[int, int] = (2, 4)
    attention: tuple[str, ...] = ("sdpa", "eager")
    refuses: dict[str, str] = field(default_factory=dict)
    state: bool = False
    rotates: bool = True
    static: bool = True
    several: bool = True
    mixed: bool = True
    tolerance: float = 3e-4

    def model(self, attention: str = "sdpa") -> torch.nn.Module:
        """The model, made once."""
        return _model(self, attention)

    def prompt(self, *pictures: int, seed: int = 0) -> Sample:
        """A prompt with these pictures."""
        generator = torch.Generator().manual_seed(1000 + seed)
        ids, shots = [1, *tiny.words(4, generator)], [self.shot(number) for number in pictures]
        for shot in shots:
            ids += shot.ids + tiny.words(3, generator)
        return ids + tiny.words(6, generator), shots

    def prompts(self) -> list[Sample]:
        """Prompts of all kinds that go into one batch."""
        kinds = [(0, 1) if self.several else (0,), (), (2,)]
        return [self.prompt(*kind, seed=i) for i, kind in enumerate(kinds) if kind or self.mixed]

    def inputs(self, *samples: Sample, extra: list[list[int]] | None = None) -> dict[str, Tensor]:
        """A batch, padded on the left; `extra` tokens are appended to every sample."""
        rows = [ids + more for (ids, _), more in zip(samples, extra or [[]] * len(samples), strict=True)]
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids = torch.tensor([[tiny.PAD] * pad + row for pad, row in zip(pads, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)])
        shots = [shots for _, shots in samples]
        tensors = self.join(shots) if any(shots) else {}
        return self.finish({"input_ids": ids, "attention_mask": mask, **tensors}, len(extra[0]) if extra else 0)


@cache
def _model(specimen: Specimen, attention: str) -> torch.nn.Module:
    return specimen.make(attention)


def build(cls: type, config: object, attention: str, seed: int = 0) -> torch.nn.Module:
    """A model with random weights that are large enough for attention to matter."""
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = tiny.randomize(cls._from_config(config, attn_implementation=attention).float(), seed)
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, START, END, *range(294, 300)]
    return model


class Patches(torch.nn.Module):
    """A vision tower of one convolution: (images, 32, 6, 6), or flat with a first token more."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.patches = flat, torch.nn.Conv2d(3, 32, 8, 8)

    def forward(self, pixel_values: Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        """Features of every patch."""
        states = self.patches(pixel_values)
        if self.flat:
            states = torch.nn.functional.pad(states.flatten(2), (1, 0)).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states)


@contextmanager
def stand_in(flat: bool = False) -> Iterator[None]:
    """Models made inside get `Patches` for towers whose library (timm) cannot be had here."""
    original = AutoModel.from_config
    AutoModel.from_config = lambda config, **kwargs: (
        Patches(flat) if config.model_type == "timm_wrapper" else original(config, **kwargs)
    )
    try:
        yield
    finally:
        AutoModel.from_config = original


def noise(number: int, *shape: int) -> Tensor:
    """The pixels of a picture."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(77 + number))


def tiles(number: int, rows: int, cols: int, side: int = 48) -> Tensor:
    """A smooth picture in tiles, and the overview behind them: (rows * cols + 1, 3, side, side)."""
    coarse = noise(number, 1, 3, 2 * rows, 2 * cols)
    picture = torch.nn.functional.interpolate(coarse, (rows * side, cols * side), mode="bilinear")[0]
    parts = picture.unflatten(1, (rows, side)).unflatten(3, (cols, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    overview = torch.nn.functional.interpolate(picture[None], (side, side), mode="area")
    return torch.cat([parts, overview]) if rows * cols > 1 else overview
