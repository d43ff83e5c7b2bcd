"""What a case is: a tiny random model of a family, and pictures in the form that its processor gives them."""

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
class PictureInput:
    """A picture or video as a model is given it: its part of the prompt and its tensors."""

    ids: list[int]
    tensors: dict[str, Tensor]
    token: int = IMAGE


Sample = tuple[list[int], list[PictureInput]]


def refuses_encoder_signals(message: str) -> dict[str, str]:
    """Return the methods that read attention or keys inside the vision encoder, each with the words of its refusal."""
    return refuses_signal(lambda signal: isinstance(signal, EncoderSignal), message)


def refuses_next_layer_scores(message: str) -> dict[str, str]:
    """Return the methods that score with the layer at the stage, which has not run yet."""
    return refuses_signal(lambda signal: isinstance(signal, Attention) and signal.layer == "K", message)


def refuses_previous_layer_scores(bad: Callable[[int], bool], message: str) -> dict[str, str]:
    """Return the methods that score with the layer before a stage whose layer is bad."""

    def reads(signal: Signal, at: int) -> bool:
        if isinstance(signal, Survivors):
            return any(reads(inner, stage.at) for stage in signal.schedule for inner in stage.signals())
        source = signal.measured
        return isinstance(source, LayerSignal) and getattr(source, "layer", "K-1") == "K-1" and bad(at)

    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: message for name, stage in stages if any(reads(signal, stage.at) for signal in stage.signals())}


def refuses_mid_layer_states() -> dict[str, str]:
    """Return the methods that read states between the attention and the MLP of a layer."""
    return refuses_signal(lambda signal: signal == LayerStates("middle"), "has no norm after its attention")


def refuses_signal(which: Callable[[Signal], bool], message: str) -> dict[str, str]:
    """Return the methods that read a signal for which `which` is true."""
    return {name: message for name, method in METHODS.items() if any(map(which, method.schedule().signals()))}


def refuses_renumbering() -> dict[str, str]:
    """Return the methods that renumber positions."""
    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: "positions='preserve'" for name, stage in stages if stage.positions == "renumber"}


def refuses_merging_up_to(last: int) -> dict[str, str]:
    """Return the methods that merge at this layer or before."""
    stages = ((name, stage) for name, method in METHODS.items() for stage in method.schedule())
    return {name: f"merge at layer {last + 1} or later" for name, stage in stages if stage.merge and stage.at <= last}


def join(samples: list[list[PictureInput]]) -> dict[str, Tensor]:
    """Concatenate the tensors of all pictures."""
    pictures = [picture for sample in samples for picture in sample]
    keys = dict.fromkeys(key for picture in pictures for key in picture.tensors)
    return {key: torch.cat([picture.tensors[key] for picture in pictures if key in picture.tensors]) for key in keys}


def unchanged(inputs: dict[str, Tensor], extra: int) -> dict[str, Tensor]:
    """Return the inputs of a model that needs no more."""
    return inputs


def add_token_types(inputs: dict[str, Tensor], extra: int) -> dict[str, Tensor]:
    """Add the type of every token: 1 for images, 2 for videos."""
    ids = inputs["input_ids"]
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


@dataclass(eq=False)
class FamilyCase:
    """A row of the family table.

    Attributes:
        name: Name of the case: the model type, and a suffix if there are several.
        make: Function that makes the model with an attention implementation.
        picture: Function that makes the picture with a number. Pictures differ in content and, if the family allows
            it, in size.
        join: Function that makes the tensors of a batch from the pictures of each sample.
        finish: Function that adds inputs which follow from the ids; its second argument is the number of ids at the
            end that were generated.
        layers: Two layers that can score and prune.
        attention: Attention implementations to test.
        refuses: Methods of the shared table that must be refused, with the words of the refusal.
        state: Whether some layers have a state instead of keys, so that no mask can hide a token from them.
        rotates: Whether some layer rotates, so that positions matter.
        static: Whether a static cache can be pruned; otherwise it must be refused.
        several: Whether a prompt may have more than one picture.
        mixed: Whether a batch may have prompts without pictures.
        tolerance: Tolerance between two ways to compute the same.
    """

    name: str
    make: Callable[[str], torch.nn.Module]
    picture: Callable[[int], PictureInput]
    join: Callable[[list[list[PictureInput]]], dict[str, Tensor]] = join
    finish: Callable[[dict[str, Tensor], int], dict[str, Tensor]] = unchanged
    layers: tuple[int, int] = (2, 4)
    attention: tuple[str, ...] = ("sdpa", "eager")
    refuses: dict[str, str] = field(default_factory=dict)
    state: bool = False
    rotates: bool = True
    static: bool = True
    several: bool = True
    mixed: bool = True
    tolerance: float = 3e-4

    def attention_in_gate(self, place: int) -> str:
        """Return the attention implementation of the gate for the case at this place of the table."""
        return self.attention[place // 8 % len(self.attention)]

    def model(self, attention: str = "sdpa") -> torch.nn.Module:
        """Return the model, which is made once."""
        return _model(self, attention)

    def prompt(self, *numbers: int, seed: int = 0) -> Sample:
        """Make a prompt with the pictures of these numbers."""
        generator = torch.Generator().manual_seed(1000 + seed)
        ids, pictures = [1, *tiny.words(4, generator)], [self.picture(number) for number in numbers]
        for picture in pictures:
            ids += picture.ids + tiny.words(3, generator)
        return ids + tiny.words(6, generator), pictures

    def prompts(self) -> list[Sample]:
        """Make prompts of all kinds that can be in one batch."""
        kinds = [(0, 1) if self.several else (0,), (), (2,)]
        return [self.prompt(*kind, seed=i) for i, kind in enumerate(kinds) if kind or self.mixed]

    def inputs(self, *samples: Sample, extra: list[list[int]] | None = None) -> dict[str, Tensor]:
        """Make a batch, padded on the left; `extra` tokens are appended to every sample."""
        rows = [ids + more for (ids, _), more in zip(samples, extra or [[]] * len(samples), strict=True)]
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids = torch.tensor([[tiny.PAD] * pad + row for pad, row in zip(pads, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)])
        pictures = [pictures for _, pictures in samples]
        tensors = self.join(pictures) if any(pictures) else {}
        return self.finish({"input_ids": ids, "attention_mask": mask, **tensors}, len(extra[0]) if extra else 0)


@cache
def _model(case: FamilyCase, attention: str) -> torch.nn.Module:
    return case.make(attention)


def build(cls: type, config: object, attention: str, seed: int = 0) -> torch.nn.Module:
    """Make a model with random weights that are large enough for attention to matter."""
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = tiny.randomize(cls._from_config(config, attn_implementation=attention).float(), seed)
    if model.can_generate():
        model.generation_config.suppress_tokens = [IMAGE, VIDEO, START, END, *range(294, 300)]
    return model


class PatchEncoder(torch.nn.Module):
    """A vision encoder of one convolution: (images, 32, 6, 6), or flat with a first token more."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.patches = flat, torch.nn.Conv2d(3, 32, 8, 8)

    def forward(self, pixel_values: Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        """Return the features of every patch."""
        states = self.patches(pixel_values)
        if self.flat:
            states = torch.nn.functional.pad(states.flatten(2), (1, 0)).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states)


@contextmanager
def replace_timm_encoder(flat: bool = False) -> Iterator[None]:
    """Models made inside get `PatchEncoder` in place of encoders whose library (timm) is not installed here."""
    original = AutoModel.from_config
    AutoModel.from_config = lambda config, **kwargs: (
        PatchEncoder(flat) if config.model_type == "timm_wrapper" else original(config, **kwargs)
    )
    try:
        yield
    finally:
        AutoModel.from_config = original


def random_pixels(number: int, *shape: int) -> Tensor:
    """Make the pixels of a picture."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(77 + number))


def random_tiles(number: int, rows: int, cols: int, side: int = 48) -> Tensor:
    """Make a smooth picture in tiles, and the overview after them: (rows * cols + 1, 3, side, side)."""
    coarse = random_pixels(number, 1, 3, 2 * rows, 2 * cols)
    picture = torch.nn.functional.interpolate(coarse, (rows * side, cols * side), mode="bilinear")[0]
    parts = picture.unflatten(1, (rows, side)).unflatten(3, (cols, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    overview = torch.nn.functional.interpolate(picture[None], (side, side), mode="area")
    return torch.cat([parts, overview]) if rows * cols > 1 else overview
