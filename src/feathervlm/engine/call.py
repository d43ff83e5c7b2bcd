"""One call of the model as a family and the engine see it: its arguments, and the images that come with it.

`generate` runs the vision encoder before the model and hands on its features only, which do not tell their grids; so
the inputs of the encoder are recorded when it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import EncoderSignal
from feathervlm.engine.report.records import EncoderRun

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""Name of the argument with the pixels of each modality."""


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """One run of the vision encoder.

    Attributes:
        modality: "image" or "video".
        arguments: Inputs of the encoder by name; pixels as tensors of the same shape without content.
        output: Function that returns its output, None once that is no longer in use.
        count: Number of entries of its `pooler_output` at that time.
        facts: Facts that the family read from the pixels.
        inside: Signals recorded inside the encoder, laid out as its states; see `vision.probe.EncoderProbe.recorded`.
        merged: Every run of an encoder that merges.
    """

    modality: str
    arguments: dict[str, Any]
    output: Callable[[], Any]
    count: int
    facts: Any = None
    inside: dict[EncoderSignal, Tensor] = field(default_factory=dict)
    merged: Sequence[EncoderRun] = ()

    @classmethod
    def of(
        cls,
        modality: str,
        arguments: dict[str, Any],
        output: Any,
        facts: Any,
        inside: dict[EncoderSignal, Tensor],
        merged: Sequence[EncoderRun] = (),
    ) -> "EncoderOutput":
        """Return the record of a call of the encoder, which does not keep the tensors of that alive."""
        inputs = {key: _hollow(value) for key, value in arguments.items()}
        alive = ref(output, lambda _: inside.clear())  # keys are as large as features, and are not needed any more
        return cls(modality, inputs, alive, entries(output), facts, inside, merged)


@dataclass(frozen=True, eq=False)
class VisualInput:
    """The images, or the videos, that a call brings.

    Attributes:
        modality: "image" or "video".
        given: Inputs of the encoder by name; empty if its run was not recorded.
        output: Output of the encoder; None if it has yet to run.
        repeats: Number of times that each image occurs, for beams and several answers.
        facts: Facts that the family read from the pixels when the encoder ran; None if it has yet to run.
    """

    modality: str
    given: dict[str, Any]
    output: Any = None
    repeats: int = 1
    facts: Any = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that they come in: pixels or projected features."""
        if self.output is None:
            return (self.given[PIXELS[self.modality]],)
        features = projected(self.output)
        return tuple(self.output.last_hidden_state if features is None else features)


@dataclass(eq=False)
class ModelCall:
    """One call of the base model, with what is known from outside it.

    Attributes:
        arguments: Arguments of the base model's forward, by name.
        logits_to_keep: Number of trailing positions whose logits the full model returns (0: all), or these positions.
        labels: Labels of the full model, in training.
        query: What the caller says about the tokens that ask; see `feathervlm.prune`.
        generating: Whether the call comes from `generate`, which packs no rows.
        encodings: Recent runs of the vision encoder, before the call (as in `generate`) and during it.
        encoded: Output of the encoder during the call, by modality.
        found: Results of the family about the call, by modality.
        outside: Token ids and images that the full model was given and has merged itself, so that the base model gets
            embeddings only; by name.
    """

    arguments: dict[str, Any]
    logits_to_keep: Any = 0
    labels: Tensor | None = None
    query: Any = None
    generating: bool = False
    encodings: list[EncoderOutput] = field(default_factory=list)
    encoded: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    outside: dict[str, Any] = field(default_factory=dict)

    @property
    def input_ids(self) -> Tensor | None:
        """The token ids; None if only embeddings were passed."""
        ids: Tensor | None = self.arguments.get("input_ids")
        return self.outside.get("input_ids") if ids is None else ids

    @property
    def tokens(self) -> Tensor:
        """`input_ids` or `inputs_embeds`, whichever was passed."""
        ids = self.input_ids
        tokens = ids if ids is not None else self.arguments.get("inputs_embeds")
        if tokens is None:
            raise Unprunable("The model was called with neither input_ids nor inputs_embeds; pass one of them.")
        return tokens

    def ids(self) -> Tensor:
        """Return `input_ids`.

        Raises:
            Unprunable: If only embeddings were passed.
        """
        ids = self.input_ids
        if ids is None:
            raise Unprunable(
                "The marks between the tiles of an image are read from input_ids, and only inputs_embeds were passed; "
                "pass input_ids, or tell prune() with layout=VisualLayout(mask, grids)."
            )
        return ids

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, sequence)."""
        return self.tokens.shape[0], self.tokens.shape[1]

    @property
    def brings_pixels(self) -> bool:
        """Whether the vision encoder will run during the call."""
        return any(self.arguments.get(name) is not None for name in PIXELS.values())

    def caches(self, config: Any) -> bool:
        """Return whether the call fills a cache, by its arguments or else the decoder's config."""
        if self.arguments.get("past_key_values") is not None:
            return True
        use = self.arguments.get("use_cache")
        return bool(getattr(config, "use_cache", True) if use is None else use)

    def visual(self, modality: str) -> VisualInput | None:
        """Return the images or videos that the call brings; None if it brings none."""
        given = {**self.outside, **self.arguments}
        if given.get(PIXELS[modality]) is not None:
            return VisualInput(modality, given)
        output = (self.arguments.get("mm_encoder_outputs") or {}).get(modality)
        if output is None:
            return None
        for encoding in self.encodings:
            if encoding.modality == modality and encoding.output() is output:
                repeats = max(entries(output) // max(encoding.count, 1), 1)
                return VisualInput(modality, encoding.arguments, output, repeats, encoding.facts)
        return VisualInput(modality, {}, output)

    def modality_of(self, method: str, pixels: Any) -> str:
        """Return the modality of pixels that the encoder has run on during the call.

        A model may have one method for the features of both.

        Args:
            method: Modality of the method that was called with the pixels.
            pixels: The pixels.
        """
        brought = [modality for modality, name in PIXELS.items() if self.arguments.get(name) is not None]
        same = [modality for modality in brought if self.arguments[PIXELS[modality]] is pixels]
        waiting = [modality for modality in brought if modality not in self.encoded]  # pixels may have been copied
        return next(iter([*same, *([method] if method in waiting else []), *waiting, method]))

    def encoder_output(self, modality: str) -> Any:
        """Return the output of the vision encoder for this call; None before it has run."""
        output = (self.arguments.get("mm_encoder_outputs") or {}).get(modality)
        return output if output is not None else self.encoded.get(modality)

    def inside_encoder(self, modality: str, signal: EncoderSignal) -> Tensor:
        """Return a signal from inside the encoder, laid out as its states: (images, patches) or (images, patches, dim).

        Raises:
            Unprunable: If it was not recorded when the encoder ran.
        """
        output = self.encoder_output(modality)
        for encoding in self.encodings:
            if encoding.modality == modality and encoding.output() is output:
                if signal not in encoding.inside:
                    raise Unprunable(f"The vision encoder skips the layer of {signal}; choose another layer.")
                return encoding.inside[signal]
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, so the attention inside the "
            "vision encoder is not known; make them inside."
        )

    def encoder_runs(self) -> list[EncoderRun]:
        """Return every run of an encoder that merges."""
        outputs = [self.encoder_output(modality) for modality in PIXELS]
        made = [known for known in self.encodings if any(known.output() is one for one in outputs if one is not None)]
        return [run for encoding in made for run in encoding.merged]


def entries(output: Any) -> int:
    """Return the number of entries of an encoder's projected features: images, or tiles of images."""
    features = projected(output)
    return 0 if features is None else len(features)


def projected(output: Any) -> Any:
    """Return the projected features of every entry: those that become embeddings, else those for the first layer."""
    pooled, layers = getattr(output, "pooler_output", None), getattr(output, "deepstack_features", None)
    return layers[0][1] if pooled is None and layers else pooled


def _hollow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.empty_like(value, device="meta")
    return [_hollow(part) for part in value] if isinstance(value, list) else value
