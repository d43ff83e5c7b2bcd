"""Choosing tokens of pictures for a serving engine: the HF engine's own stages, run on what the server has computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Picture, VisualLayout
from feathervlm.core.schedule import Schedule
from feathervlm.core.signals import EncoderSignal
from feathervlm.engine.cache.layer import HookStatus
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import GivenLayout
from feathervlm.engine.scoring_pass import run_stages
from feathervlm.serving.decoder import ServedDecoder


@dataclass(frozen=True, eq=False)
class ServedPrompt:
    """A prompt with one picture, as far as its choice needs it.

    Attributes:
        image: Projected features of the picture, (tokens, dim).
        picture: Planes of the picture.
        before: Embeddings of the text before it, (n, dim); None if the method does not read text.
        after: Embeddings of the text after it, (n, dim); None if the method does not read text.
        positions: Positions of the whole prompt, long (axes, n); None for 0, 1, 2, ...
        vision: Features of the vision encoder before the projector, (tokens, dim); None if they are not known.
        encoder: Signals from inside the vision encoder, (tokens,) or (tokens, dim).
    """

    image: Tensor
    picture: Picture
    before: Tensor | None = None
    after: Tensor | None = None
    positions: Tensor | None = None
    vision: Tensor | None = None
    encoder: Mapping[EncoderSignal, Tensor] = field(default_factory=dict)

    def embeddings(self) -> Tensor:
        """Return the embeddings of the whole prompt; a row of zeros asks where no text is read."""
        if self.before is None or self.after is None:
            return torch.cat([self.image, torch.zeros_like(self.image[:1])])
        return torch.cat([self.before, self.image, self.after])

    @property
    def start(self) -> int:
        """Index of the first token of the picture."""
        return 0 if self.before is None else len(self.before)


@dataclass(frozen=True, eq=False)
class ServedChoice:
    """What is left of a picture.

    Attributes:
        kept: Indices of the tokens that stay, long (n,), ascending.
        states: Embeddings of these tokens, (n, dim), into which others may have been merged.
    """

    kept: Tensor
    states: Tensor


class ServedFamily(GivenLayout):
    """What a serving engine knows of the pictures of a batch.

    Args:
        decoder: Its decoder.
        given: Layout of the batch.
        prompts: Prompts of the batch.
    """

    def __init__(self, decoder: ServedDecoder, given: VisualLayout, prompts: Sequence[ServedPrompt]) -> None:
        super().__init__(cast(PreTrainedModel, decoder), given)
        self.prompts = prompts

    def vision_features(self, call: ModelCall, layout: VisualLayout) -> Tensor:
        vision = [prompt.vision for prompt in self.prompts]
        if any(part is None for part in vision):
            raise Unprunable(
                "The features of this model's vision encoder are not known where it is served; use the projected ones "
                "(features=projected)."
            )
        return _padded(cast(list[Tensor], vision))

    def inside_encoder(self, call: ModelCall, layout: VisualLayout, signal: EncoderSignal) -> Tensor:
        if any(signal not in prompt.encoder for prompt in self.prompts):
            raise Unprunable(
                "The attention inside this model's vision encoder is not known where it is served; choose another "
                "method."
            )
        return _padded([prompt.encoder[signal] for prompt in self.prompts])


class Chooser:
    """Chooses tokens with the schedules of methods.

    Args:
        decoder: The decoder of the serving engine.
    """

    def __init__(self, decoder: ServedDecoder) -> None:
        self.decoder = decoder
        self.view = DecoderView(cast(PreTrainedModel, decoder))

    @torch.inference_mode()
    def choose(self, schedule: Schedule, prompts: Sequence[ServedPrompt]) -> list[ServedChoice]:
        """Choose the tokens of every picture, in one batch.

        Args:
            schedule: A schedule with one stage, before the language model.
            prompts: The prompts.
        """
        embeddings = [prompt.embeddings() for prompt in prompts]
        lengths = list(map(len, embeddings))
        hidden = _padded(embeddings)
        device, longest = hidden.device, hidden.shape[1]
        mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        attended = torch.zeros_like(mask)
        for row, prompt in enumerate(prompts):
            mask[row, prompt.start : prompt.start + len(prompt.image)] = True
            attended[row, : lengths[row]] = True
        layout = VisualLayout(mask.to(device), [[prompt.picture] for prompt in prompts], trusted=True)
        arguments: dict[str, Any] = {"inputs_embeds": hidden, "position_ids": _positions(prompts, longest).to(device)}
        if min(lengths) < longest:
            arguments["attention_mask"] = attended.to(device)
        call, status = ModelCall(arguments), HookStatus()
        family = ServedFamily(self.decoder, layout, prompts)
        model = self.view, family, status
        prefill = run_stages(schedule, call, layout, *model)
        kept, states = prefill.record.stages[-1].kept, prefill.states
        assert states is not None
        rows = prefill.rows.visual.to(states.device)
        numbers = [own.nonzero()[:, 0] for own in kept]
        return [ServedChoice(own, states[row, rows[row, own]]) for row, own in enumerate(numbers)]


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _positions(prompts: Sequence[ServedPrompt], longest: int) -> Tensor:
    """Return positions, long (batch, longest) for one axis, else (axes, batch, longest)."""
    given = [prompt.positions for prompt in prompts]
    if any(part is None for part in given):
        return torch.arange(longest).expand(len(prompts), -1)
    positions = _padded([part.T for part in cast(list[Tensor], given)]).permute(2, 0, 1)
    return positions[0] if len(positions) == 1 else positions
