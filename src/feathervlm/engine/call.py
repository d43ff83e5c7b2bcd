"""One call of the model as a family and the engine see it: its arguments, and the images that come with it.

`generate` runs the vision encoder ahead of the model and hands on features alone, which no longer tell their grids;
what the encoder was given is noted when it runs. Knows nothing of layers or methods.
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
"""The argument that brings the pixels of each modality."""


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """One run of the vision encoder.

    Attributes:
        modality: "image" or "video".
        arguments: what it was given, by name; pixels as tensors of the same shape without content.
        output: gives what came out, None once nobody uses that any more.
        count: entries of its `pooler_output` at that time.
        facts: what the family took down of the pixels.
        inside: what was seen inside the encoder, laid out as its states; see `vision.EncoderProbe.seen`.
        merged: every run of an encoder that merges.
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
        """From a call of the encoder, without holding on to its tensors."""
        given = {key: _hollow(value) for key, value in arguments.items()}
        alive = ref(output, lambda _: inside.clear())  # keys are as large as features, and nobody can ask any more
        return cls(modality, given, alive, entries(output), facts, inside, merged)


@dataclass(frozen=True, eq=False)
class VisualInput:
    """The images, or the videos, that a call brings.

    Attributes:
        modality: "image" or "video".
        given: what the encoder was or will be given, by name; empty if nobody saw it run.
        output: what it returned, None if it has yet to run.
        repeats: how often each image occurs, for beams and several answers.
        facts: what the family took down of the pixels when the encoder ran; None if it has yet to run.
    """

    modality: str
    given: dict[str, Any]
    output: Any = None
    repeats: int = 1
    facts: Any = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors they come in: pixels or projected features."""
        if self.output is None:
            return (self.given[PIXELS[self.modality]],)
        features = projected(self.output)
        return tuple(self.output.last_hidden_state if features is None else features)


@dataclass(eq=False)
class ModelCall:
    """One call of the base model: its arguments by name, and what is known around it.

    Attributes:
        arguments: of the base model's forward.
        logits_to_keep: of the full model's forward: how many trailing positions are asked for (0: all).
        labels: of the full model's forward, in training.
        encodings: recent runs of the vision encoder, before the call (as `generate` does it) and during it.
        encoded: what the encoder returned during the call, by modality.
        found: what the family has found out about the call, by modality.
    """

    arguments: dict[str, Any]
    logits_to_keep: Any = 0
    labels: Tensor | None = None
    encodings: list[EncoderOutput] = field(default_factory=list)
    encoded: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> Tensor:
        """`input_ids` or `inputs_embeds`, whichever was given."""
        ids = self.arguments.get("input_ids")
        given = ids if ids is not None else self.arguments.get("inputs_embeds")
        if given is None:
            raise Unprunable("The model was called with neither input_ids nor inputs_embeds.")
        return given

    def ids(self) -> Tensor:
        """`input_ids`.

        Raises:
            Unprunable: if only embeddings were given.
        """
        ids: Tensor | None = self.arguments.get("input_ids")
        if ids is None:
            raise Unprunable(
                "The marks between the tiles of an image are read from input_ids, and only inputs_embeds were given; "
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
        """The images or videos that the call brings; None if it brings none."""
        if self.arguments.get(PIXELS[modality]) is not None:
            return VisualInput(modality, self.arguments)
        output = (self.arguments.get("mm_encoder_outputs") or {}).get(modality)
        if output is None:
            return None
        for encoding in self.encodings:
            if encoding.modality == modality and encoding.output() is output:
                repeats = max(entries(output) // max(encoding.count, 1), 1)
                return VisualInput(modality, encoding.arguments, output, repeats, encoding.facts)
        return VisualInput(modality, {}, output)

    def encoder_output(self, modality: str) -> Any:
        """What the vision encoder returned for this call; None before it has run."""
        output = (self.arguments.get("mm_encoder_outputs") or {}).get(modality)
        return output if output is not None else self.encoded.get(modality)

    def inside_encoder(self, modality: str, signal: EncoderSignal) -> Tensor:
        """A signal from inside the encoder, laid out as its states: (images, patches), keys (images, patches, dim).

        Raises:
            Unprunable: if nobody looked when it ran.
        """
        output = self.encoder_output(modality)
        for encoding in self.encodings:
            if encoding.modality == modality and encoding.output() is output:
                if signal not in encoding.inside:
                    raise Unprunable(f"The vision encoder leaves out what was asked for, {signal}; choose another.")
                return encoding.inside[signal]
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, so the attention inside the "
            "vision encoder is not known; make them inside."
        )

    def encoder_runs(self) -> list[EncoderRun]:
        """Every run of an encoder that merges."""
        outputs = [self.encoder_output(modality) for modality in PIXELS]
        made = [known for known in self.encodings if any(known.output() is one for one in outputs if one is not None)]
        return [run for encoding in made for run in encoding.merged]


def entries(output: Any) -> int:
    """Entries of an encoder's projected features: images, or tiles of images."""
    features = projected(output)
    return 0 if features is None else len(features)


def projected(output: Any) -> Any:
    """Projected features of every entry: those that become embeddings, else those for the first decoder layer."""
    pooled, layers = getattr(output, "pooler_output", None), getattr(output, "deepstack_features", None)
    return layers[0][1] if pooled is None and layers else pooled


def _hollow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.empty_like(value, device="meta")
    return [_hollow(part) for part in value] if isinstance(value, list) else value
