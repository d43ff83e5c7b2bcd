"""One call of the model as a family and the engine see it: its arguments, and the images that come with it.

`generate` runs the vision encoder before the model and hands on its features only, which do not tell their grids; so
the inputs of the encoder are recorded when it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize, ref

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import EncoderSignal
from feathervlm.engine.copies import same_tensor, same_tree
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
        features: Functions that return the features of the output, None once these are no longer in use.
    """

    modality: str
    arguments: dict[str, Any]
    output: Callable[[], Any]
    count: int
    facts: Any = None
    inside: dict[EncoderSignal, Tensor] = field(default_factory=dict)
    merged: Sequence[EncoderRun] = ()
    features: Sequence[Callable[[], Tensor | None]] = ()

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
        inputs, features = {key: _hollow(value) for key, value in arguments.items()}, feature_tensors(output)
        alive = [TensorWeakRef(part) for part in features]
        encoding = cls(modality, inputs, ref(output), entries(output), facts, inside, merged, alive)
        for part in (output, *features):
            finalize(part, encoding._let_go)
        return encoding

    @property
    def alive(self) -> bool:
        """Whether the output, or all of its features without it, are still in use."""
        features = [part() is not None for part in self.features]
        return self.output() is not None or (bool(features) and all(features))

    def _let_go(self) -> None:
        if not self.alive:
            self.inside.clear()  # keys are as large as features, and are not needed any more

    def copied_to(self, output: Any) -> bool:
        """Return whether an output is a copy of this one, with the same features on any device."""
        original, theirs = self.output(), feature_tensors(output)
        ours = [part() for part in self.features] if original is None else feature_tensors(original)
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) > 0 and all(a is not None and same_tensor(b, a) for a, b in pairs)


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
        return (self.given[PIXELS[self.modality]],) if self.output is None else feature_tensors(self.output)


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
        copies: Runs of the encoder whose output was copied to the call, by modality.
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
    copies: dict[str, EncoderOutput | None] = field(default_factory=dict)

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
        encoding = self._encoding(modality, output)
        if encoding is None:
            return VisualInput(modality, {}, output)
        repeats = max(entries(output) // max(encoding.count, 1), 1)
        return VisualInput(modality, encoding.arguments, output, repeats, encoding.facts)

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
        encoding = self._encoding(modality, self.encoder_output(modality))
        if encoding is None:
            raise Unprunable(
                "The features of these images were made before feathervlm.prune was called, so the attention inside "
                "the vision encoder is not known; make them inside."
            )
        if signal not in encoding.inside:
            raise Unprunable(f"The vision encoder skips the layer of {signal}; choose another layer.")
        return encoding.inside[signal]

    def encoder_runs(self) -> list[EncoderRun]:
        """Return every run of an encoder that merges."""
        made = [self._encoding(modality, self.encoder_output(modality)) for modality in PIXELS]
        return [run for encoding in made if encoding is not None for run in encoding.merged]

    def _encoding(self, modality: str, output: Any) -> EncoderOutput | None:
        """Return the run of the encoder that an output comes from, if need be as a copy; None if it is not known.

        Raises:
            Unprunable: If several runs on different pictures have the features of a copy.
        """
        known = [encoding for encoding in self.encodings if encoding.modality == modality]
        made = next((encoding for encoding in known if encoding.output() is output), None)
        if made is not None or output is None:
            return made
        if modality not in self.copies:
            copied = [encoding for encoding in known if encoding.copied_to(output)]
            facts = [(encoding.arguments, encoding.facts) for encoding in copied]
            if not all(same_tree(facts[0], other) for other in facts[1:]):
                raise Unprunable(
                    f"The {modality} features are a copy, and equal to those of pictures with other grids, so theirs "
                    "are not known; pass what the vision encoder returned, not a copy."
                )
            self.copies[modality] = max(copied, key=lambda encoding: len(encoding.inside), default=None)
        return self.copies[modality]


def entries(output: Any) -> int:
    """Return the number of entries of an encoder's projected features: images, or tiles of images."""
    features = projected(output)
    return 0 if features is None else len(features)


def projected(output: Any) -> Any:
    """Return the projected features of every entry: those that become embeddings, else those for the first layer."""
    pooled, layers = getattr(output, "pooler_output", None), getattr(output, "deepstack_features", None)
    return layers[0][1] if pooled is None and layers else pooled


def feature_tensors(output: Any) -> tuple[Tensor, ...]:
    """Return the tensors that an encoder's features are in: projected, or where they are not, its states."""
    features = projected(output)
    features = getattr(output, "last_hidden_state", None) if features is None else features
    if features is None:
        return ()
    return (features,) if isinstance(features, Tensor) else tuple(features)


def _hollow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.empty_like(value, device="meta")
    return [_hollow(part) for part in value] if isinstance(value, list) else value
