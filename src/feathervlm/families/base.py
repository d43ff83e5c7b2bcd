"""What most families share: the processor repeats a placeholder id, one for every feature of an image.

A family that builds on this says which `PlaceholderRun` each image makes; finding them in a batch, sharing them out to
samples and checking the count happen here.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import Picture, Plane, VisualLayout, tokens_of
from feathervlm.core.signals import EncoderKeys, EncoderSignal, Representatives
from feathervlm.engine.call import ModelCall, VisualInput, projected
from feathervlm.engine.family import Family


@dataclass(frozen=True)
class PlaceholderRun:
    """The placeholders of one image or video.

    Attributes:
        picture: its planes.
        text: numbers of the placeholders that show no part of the picture: line breaks and separators.
    """

    picture: Picture
    text: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Placeholders."""
        return tokens_of(self.picture) + len(self.text)

    def visual(self) -> list[bool]:
        """Which placeholders show a part of the picture."""
        line = [True] * self.length
        for place in self.text:
            line[place] = False
        return line


def grid(rows: int, cols: int, frames: int = 1) -> PlaceholderRun:
    """A picture in one plane, in raster order."""
    return PlaceholderRun((Plane((frames, rows, cols)),))


class Placeholders(Family):
    """Base of the families whose visual tokens have an id of their own."""

    @abstractmethod
    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """The placeholders of every image, in the order of the images.

        Raises:
            Unprunable: if the geometry cannot be told.
        """

    def runs_of_features(self, visual: VisualInput) -> list[PlaceholderRun]:
        """The same from features alone, if nobody saw the encoder run.

        Raises:
            Unprunable: if they do not tell.
        """
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, so their grids are not "
            "known; make them inside, or tell prune() with layout=VisualLayout(mask, grids)."
        )

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """The encoder's feature of every token, of all images in order, before the projector: (tokens, dim).

        Raises:
            Unprunable: if they cannot be had.
        """
        raise Unprunable(
            f"The vision encoder's features of {self.title} are not known; use the projected ones (features=projected)."
        )

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        """As `features`, laid out as (batch, visual, dim)."""
        return self._lay_out(call, layout, lambda visual: call.encoder_output(visual.modality))

    def inside_encoder(self, call: ModelCall, layout: VisualLayout, signal: EncoderSignal) -> Tensor:
        """Attention or keys inside the encoder, merged and laid out as its features are."""
        single = not isinstance(signal, EncoderKeys)

        def seen(visual: VisualInput) -> Any:
            """What the encoder would have returned if its states were what was seen."""
            found = call.inside_encoder(visual.modality, signal)
            usual = getattr(call.encoder_output(visual.modality), "last_hidden_state", None)
            if usual is None:
                raise Unprunable(f"The encoder of {self.title} does not return its states; choose another method.")
            states = found[..., None] if single else found
            if isinstance(signal, Representatives):
                states = states.flatten(1, 2) if usual.dim() == 2 else states
                return SimpleNamespace(last_hidden_state=states[-1], hidden_states=states)
            states = states.flatten(0, 1) if usual.dim() == 2 else states
            return SimpleNamespace(last_hidden_state=states, hidden_states=_Always(states))

        laid = self._lay_out(call, layout, seen)
        return laid[..., 0] if single else laid

    def _lay_out(self, call: ModelCall, layout: VisualLayout, output: Callable[[VisualInput], Any]) -> Tensor:
        """The encoder's output for every visual token: (batch, visual, dim)."""
        visuals = self._visuals(call)
        if len(visuals) != 1:
            raise Unprunable(
                "What the encoder says of images and videos in one prompt is not kept together; use the projected "
                "features (features=projected)."
            )
        visual = visuals[0]
        runs = self._runs(visual, call)
        features = self.features(visual, output(visual), runs).detach().to(layout.mask.device)
        expected = sum(tokens_of(run.picture) for run in runs)
        if len(features) != expected:
            raise Unprunable(
                f"The encoder of {self.title} has {len(features)} states for {expected} tokens; choose a "
                "method that does not read them."
            )
        exists = layout.geometry().exists[:: visual.repeats]
        place = (exists.flatten().cumsum(0) - 1).clamp(min=0).view(exists.shape)
        return features[place.repeat_interleave(visual.repeats, 0)]

    def token(self, modality: str) -> int:
        """The placeholder id."""
        config: Any = self.model.config
        found = getattr(config, f"{modality}_token_id", None)
        return int(getattr(config, f"{modality}_token_index") if found is None else found)

    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        """Pixels in a plain forward, projected features under `generate`."""
        parts = tuple(part for visual in self._visuals(call) for part in visual.parts)
        cache = call.arguments.get("past_key_values")
        if not parts and call.arguments.get("input_ids") is None and (cache is None or not int(cache.get_seq_length())):
            raise Unprunable(
                "inputs_embeds hide which tokens are visual; pass input_ids, or tell prune() with "
                "layout=VisualLayout(mask, grids)."
            )
        return parts

    def layout(self, call: ModelCall) -> VisualLayout:
        """The layout of a call that brings images or videos."""
        found = []
        for visual in self._visuals(call):
            runs = self._runs(visual, call)
            if visual.output is not None and visual.given:
                self._compare(runs, visual.modality, visual.output, visual.repeats)
            found.append((self._placeholders(call, visual.modality), runs, visual.repeats))
        shared = [self._share(*part) for part in found]
        if len(found) == 1:
            mask, samples = found[0][0], shared[0]
        else:
            mask = torch.stack([part[0] for part in found]).any(0)
            samples = _interleave([part[0] for part in found], shared)
        if any(run.text for sample in samples for run in sample):
            mask = mask & _pattern(mask, samples)
        return VisualLayout(mask, [[run.picture for run in sample] for sample in samples], trusted=True)

    def check(self, call: ModelCall, modality: str, output: Any) -> None:
        """As many features as the runs say."""
        visual = call.visual(modality)
        if visual is not None and visual.output is None:
            self._compare(self._runs(visual, call), modality, output, 1)

    def _compare(self, runs: Sequence[PlaceholderRun], modality: str, output: Any, repeats: int) -> None:
        made = projected(output)
        if made is None:
            return
        features = sum(part.shape[:-1].numel() for part in made) // repeats
        expected = sum(run.length for run in runs)
        if features != expected:
            raise PruningError(
                f"{type(self.model).__name__} made {features} features where its {modality} grids say {expected}; "
                "please report this input, and tell prune() the geometry with layout=VisualLayout(mask, grids)."
            )

    def _runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        if visual.modality not in call.found:
            call.found[visual.modality] = self.runs(visual, call) if visual.given else self.runs_of_features(visual)
        runs: list[PlaceholderRun] = call.found[visual.modality]
        return runs

    def _visuals(self, call: ModelCall) -> list[VisualInput]:
        found = [call.visual(modality) for modality in self.modalities]
        return [visual for visual in found if visual is not None]

    def _placeholders(self, call: ModelCall, modality: str) -> Tensor:
        token = self.token(modality)
        ids = call.arguments.get("input_ids")
        if ids is not None:
            return ids == token
        embeds = call.arguments["inputs_embeds"]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder).all(-1)

    def _share(self, mask: Tensor, runs: Sequence[PlaceholderRun], repeats: int) -> list[list[PlaceholderRun]]:
        """The runs of every sample, by how many placeholders it has."""
        if len(mask) == 1:  # transformers itself checks that placeholders and features match in number
            return [list(runs)]
        samples: list[list[PlaceholderRun]] = []
        rest = iter(runs)
        for sample, found in enumerate(mask.sum(1).tolist()):
            if sample % repeats:
                samples.append(samples[-1])
                continue
            images = []
            while found > 0:
                run = next(rest, None)
                if run is None:
                    raise PruningError(f"Sample {sample} has more image placeholders than there are image features.")
                images.append(run)
                found -= run.length
            samples.append(images)
            if found:
                raise PruningError(
                    f"Sample {sample} has {-found} image placeholders fewer than its images have tokens; make the "
                    "prompt with the model's own processor."
                )
        return samples


class _Always:
    """A list of layers that are all the same."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __getitem__(self, layer: int) -> Tensor:
        return self.states


def _interleave(masks: Sequence[Tensor], shared: Sequence[list[list[PlaceholderRun]]]) -> list[list[PlaceholderRun]]:
    """Images and videos of each sample in the order in which they come."""
    samples = []
    for sample in range(len(masks[0])):
        begun = []
        for mask, runs in zip(masks, shared, strict=True):
            places, start = mask[sample].nonzero()[:, 0].tolist(), 0
            for run in runs[sample]:
                begun.append((places[start], run))
                start += run.length
        samples.append([run for _, run in sorted(begun, key=lambda pair: pair[0])])
    return samples


def _pattern(mask: Tensor, samples: Sequence[Sequence[PlaceholderRun]]) -> Tensor:
    """Which placeholders show a part of a picture: bool (batch, sequence), anything elsewhere."""
    lines = [[shown for run in sample for shown in run.visual()] for sample in samples]
    longest = max(map(len, lines))
    table = torch.tensor([line + [False] * (longest - len(line)) for line in lines], device=mask.device)
    return table.gather(1, (mask.cumsum(1) - 1).clamp(0, longest - 1))
