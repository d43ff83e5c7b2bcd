"""What most families share: the processor repeats a placeholder id, once for every feature of an image.

A family that builds on this returns the `PlaceholderRun` of each image. Finding the runs in a batch, assigning them to
samples and checking their number happen here.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout, tokens_of
from feathervlm.core.signals import EncoderSignal
from feathervlm.engine.call import ModelCall, VisualInput, projected
from feathervlm.engine.family import Family
from feathervlm.families.runs import PlaceholderRun, in_prompt_order, runs_by_sample, visual_placeholders


class Placeholders(Family):
    """Base of the families whose visual tokens have an id of their own."""

    # What a family implements.

    @abstractmethod
    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return the placeholders of every image, in the order of the images.

        Raises:
            Unprunable: If the geometry is not known.
        """

    def runs_of_features(self, visual: VisualInput) -> list[PlaceholderRun]:
        """Return the placeholders of every image from its features, for an encoder that ran before the pruning.

        Raises:
            Unprunable: If the features do not give the geometry.
        """
        raise Unprunable(
            "The features of these images were made before feathervlm.prune was called, so their grids are not "
            "known; make them inside, or pass layout=VisualLayout(mask, grids) to prune()."
        )

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the encoder's feature of every token, before the projector.

        Args:
            visual: The images.
            output: The output of the encoder.
            runs: The placeholders of every image.

        Returns:
            Features of shape (tokens, dim), of all images in order.

        Raises:
            Unprunable: If the features are not known.
        """
        raise Unprunable(
            f"The vision encoder's features of {self.title} are not known; use the projected ones (features=projected)."
        )

    def token(self, modality: str) -> int:
        """Return the placeholder id of a modality, "image" or "video"."""
        config: Any = self.model.config
        token = getattr(config, f"{modality}_token_id", None)
        return int(getattr(config, f"{modality}_token_index") if token is None else token)

    # Where the visual tokens are.

    def visual_source(self, call: ModelCall) -> tuple[Tensor, ...]:
        parts = tuple(part for visual in self._visuals(call) for part in visual.parts)
        cache = call.arguments.get("past_key_values")
        if not parts and call.input_ids is None and (cache is None or not int(cache.get_seq_length())):
            raise Unprunable(
                "inputs_embeds do not show which tokens are visual; pass input_ids, or pass "
                "layout=VisualLayout(mask, grids) to prune()."
            )
        return parts

    def layout(self, call: ModelCall) -> VisualLayout:
        for visual in self._visuals(call):
            if visual.output is not None and visual.given:
                self._compare(self._runs(visual, call), visual.modality, visual.output, visual.repeats)
        mask, by_modality = self._samples(call)
        samples = [[run for _, run in sample] for sample in by_modality]
        if any(run.text for sample in samples for run in sample):
            mask = mask & visual_placeholders(mask, samples)
        return VisualLayout(mask, [[run.picture for run in sample] for sample in samples], trusted=True)

    def _samples(self, call: ModelCall) -> tuple[Tensor, list[list[tuple[int, PlaceholderRun]]]]:
        """Return the placeholders, bool (batch, sequence), and the runs of every sample in the order of its prompt.

        Each run comes with the number of its modality among the visual inputs of the call.
        """
        visuals = self._visuals(call)
        if len({self.token(visual.modality) for visual in visuals}) < len(visuals):
            raise Unprunable(
                f"Images and videos of {self.title} have the same placeholder, so one call cannot bring both; run them "
                "in separate calls."
            )
        placeholders = [self._placeholders(call, visual.modality) for visual in visuals]
        runs = [
            runs_by_sample(mask, self._runs(visual, call), visual.repeats)
            for mask, visual in zip(placeholders, visuals, strict=True)
        ]
        if len(runs) == 1:
            return placeholders[0], [[(0, run) for run in sample] for sample in runs[0]]
        return torch.stack(placeholders).any(0), in_prompt_order(placeholders, runs)

    def check(self, call: ModelCall, modality: str, output: Any) -> None:
        visual = call.visual(modality) if modality in self.modalities else None
        if visual is not None and visual.output is None:
            self._compare(self._runs(visual, call), modality, output, 1)

    def _compare(self, runs: Sequence[PlaceholderRun], modality: str, output: Any, repeats: int) -> None:
        features = projected(output)
        if features is None:
            return
        made = sum(part.shape[:-1].numel() for part in features) // repeats
        expected = sum(run.length for run in runs)
        if made != expected:
            raise PruningError(
                f"{type(self.model).__name__} made {made} features where its {modality} grids say {expected}; "
                "please report this input, and pass the geometry to prune() as layout=VisualLayout(mask, grids)."
            )

    def _runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return the placeholders of every image, which are worked out once per call."""
        if visual.modality not in call.found:
            call.found[visual.modality] = self.runs(visual, call) if visual.given else self.runs_of_features(visual)
        runs: list[PlaceholderRun] = call.found[visual.modality]
        return runs

    def _visuals(self, call: ModelCall) -> list[VisualInput]:
        visuals = [call.visual(modality) for modality in self.modalities]
        return [visual for visual in visuals if visual is not None]

    def _placeholders(self, call: ModelCall, modality: str) -> Tensor:
        token = self.token(modality)
        ids = call.input_ids
        if ids is not None:
            return ids == token
        embeds = call.arguments["inputs_embeds"]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder.to(embeds.device)).all(-1)

    # What the vision encoder computed for each visual token.

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        return self._per_token(call, layout, lambda visual: call.encoder_output(visual.modality))

    def inside_encoder(self, call: ModelCall, layout: VisualLayout, signal: EncoderSignal) -> Tensor:
        one_number = not signal.has_vectors

        def output_with_signal(visual: VisualInput) -> Any:
            """Return what the encoder would have returned if the signal were its states."""
            values = call.inside_encoder(visual.modality, signal)
            usual = getattr(call.encoder_output(visual.modality), "last_hidden_state", None)
            if usual is None:
                raise Unprunable(f"The encoder of {self.title} does not return its states; choose another method.")
            states = values[..., None] if one_number else values
            packed = usual.dim() == 2
            if signal.has_layers:
                states = states.flatten(1, 2) if packed else states
                return SimpleNamespace(last_hidden_state=states[-1], hidden_states=states)
            states = states.flatten(0, 1) if packed else states
            return SimpleNamespace(last_hidden_state=states, hidden_states=_SameForAllLayers(states))

        values = self._per_token(call, layout, output_with_signal)
        return values[..., 0] if one_number else values

    def _per_token(self, call: ModelCall, layout: VisualLayout, output: Callable[[VisualInput], Any]) -> Tensor:
        """Return the features of an output of the encoder for every visual token, of shape (batch, visual, dim)."""
        visuals = self._visuals(call)
        by_run = [self._per_run(visual, output(visual), call) for visual in visuals]
        repeats = visuals[0].repeats
        if len(visuals) == 1:
            features = torch.cat(by_run[0])
        else:
            remaining = list(map(iter, by_run))
            samples = self._samples(call)[1][::repeats]
            features = torch.cat([next(remaining[number]) for sample in samples for number, _ in sample])
        features = features.detach().to(layout.mask.device)
        exists = layout.geometry().exists[::repeats]
        place = (exists.flatten().cumsum(0) - 1).clamp(min=0).view(exists.shape)
        return features[place.repeat_interleave(repeats, 0)]

    def _per_run(self, visual: VisualInput, output: Any, call: ModelCall) -> list[Tensor]:
        """Return the features of an output of the encoder for every image, each of shape (tokens, dim)."""
        if output is None and call.outside:
            raise Unprunable(
                f"{type(self.model).__name__} was given embeddings in which the features of the images are merged, so "
                "what the vision encoder computed is not known; choose a method that does not read it."
            )
        runs = self._runs(visual, call)
        features, lengths = self.features(visual, output, runs), [tokens_of(run.picture) for run in runs]
        if len(features) != sum(lengths):
            raise Unprunable(
                f"The encoder of {self.title} has {len(features)} states for {sum(lengths)} tokens; choose a "
                "method that does not read them."
            )
        return list(features.split(lengths))


class _SameForAllLayers:
    """A sequence of layers that all have the same states."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __getitem__(self, layer: int) -> Tensor:
        return self.states
