"""The one way to ask a model, pruned or not: greedily or by choices, in batches, with times and reports."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feathervlm.api import prune
from feathervlm.core.schedule import Schedule
from feathervlm.engine.report.report import Report
from feathervlm.inference.choices import choice_tokens, choose
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.inference.prompts import Prompt, has_template, prepare
from feathervlm.inference.streaming import Listen, TokenStreamer
from feathervlm.methods import Method
from feathervlm.utils.quiet import quiet

AnyMethod = str | Method | Schedule | None
"""A spec, a method or a schedule; None and `UNPRUNED` prune nothing."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one prompt.

    Attributes:
        written: The answer as the model wrote it, or the choice.
        tokens: Number of new tokens, with the one that ends the answer.
        prompt_tokens: Number of tokens of the prompt.
        seconds: Time from the prepared inputs to the end of the batch.
        first_token_seconds: Time to the first new token; None if the answer was not timed.
        report: Report of the batch; None if no method was given or the batch has no picture.
        place: Index of the prompt in its batch.
    """

    written: str
    tokens: int
    prompt_tokens: int
    seconds: float
    first_token_seconds: float | None = None
    report: Report | None = None
    place: int = 0

    @property
    def text(self) -> str:
        """The answer without white space around it."""
        return self.written.strip()


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one forward with the inputs that the model takes for them."""

    prompts: Sequence[Prompt]
    inputs: Any


class Answerer:
    """A loaded model that is asked.

    Args:
        loaded: The model with its processor.
        strict: Refuse what cannot be pruned, as `prune` does.
    """

    def __init__(self, loaded: LoadedModel, *, strict: bool = True) -> None:
        self.loaded, self.strict = loaded, strict
        self.model, self.processor = loaded.model, loaded.processor
        self._tokens: dict[tuple[str, ...], list[int]] = {}

    @property
    def batch(self) -> int:
        """Prompts per forward; 1 without a chat template."""
        return self.loaded.settings.batch if has_template(self.processor) else 1

    def ask(
        self,
        prompts: Sequence[Prompt],
        method: AnyMethod = None,
        *,
        choices: Sequence[str] = (),
        max_new_tokens: int | None = None,
    ) -> list[Answer]:
        """Answer prompts in batches.

        Args:
            prompts: The prompts.
            method: Method that prunes them.
            choices: Answers to choose from by their first token; without any the answer is written greedily.
            max_new_tokens: Maximum length of an answer. The default is that of the model.

        Raises:
            PruningError: Placeholders do not match pictures, the method does not fit, or a choice is not one token.
        """
        return [
            answer
            for batch in self.batches(prompts)
            for answer in self.answer(batch, method, choices=choices, max_new_tokens=max_new_tokens)
        ]

    def look(self, prompts: Sequence[Prompt], method: AnyMethod) -> Report:
        """Prune prompts in one forward and return the report; the answers are dropped."""
        report = self.answer(self.prepare(prompts), method, max_new_tokens=1)[0].report
        assert report is not None, "there is a method and a picture"
        return report

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[Batch]:
        """Yield the prepared batches of prompts."""
        for start in range(0, len(prompts), self.batch):
            yield self.prepare(prompts[start : start + self.batch])

    def prepare(self, prompts: Sequence[Prompt]) -> Batch:
        """Prepare prompts for one forward.

        Raises:
            PruningError: A text or a picture does not fit the model.
        """
        with quiet():
            inputs = prepare(self.processor, prompts)
        return Batch(prompts, inputs.to(self.model.device, dtype=self.model.dtype))

    def answer(
        self,
        batch: Batch,
        method: AnyMethod = None,
        *,
        choices: Sequence[str] = (),
        max_new_tokens: int | None = None,
        timed: bool = False,
        listen: Listen | None = None,
    ) -> list[Answer]:
        """Answer a prepared batch, see `ask`.

        Args:
            batch: The batch; one prompt if there is a listener.
            method: Method that prunes it.
            choices: Answers to choose from by their first token.
            max_new_tokens: Maximum length of an answer.
            timed: Whether the time to the first token is measured.
            listen: Callback, called with the text so far after every new token.
        """
        pruned = method is not None and method != UNPRUNED
        tokens = self._choice_tokens(batch.prompts[0], choices) if choices else None
        context = prune(self.model, method, strict=self.strict) if pruned else nullcontext()  # type: ignore[arg-type]
        with quiet(), torch.inference_mode(), context as pruning:
            if timed and self.model.device.type != "cpu":
                torch.accelerator.synchronize()
            streamer = TokenStreamer(self.processor, listen)
            output = self.model.generate(
                **batch.inputs,
                max_new_tokens=1 if choices else max_new_tokens or self.loaded.settings.max_new_tokens,
                do_sample=False,
                num_beams=1,
                streamer=streamer if timed or listen else None,
                return_dict_in_generate=True,
                output_logits=bool(choices),
            )
            seconds = time.perf_counter() - streamer.start
        # A forward without pictures is not recorded, so that there may be no report.
        report = pruning.report if pruning is not None and any(one.shows for one in batch.prompts) else None
        if tokens is not None:
            texts = [choices[number] for number in choose(output.logits[0], tokens)]
            lengths = [1] * len(texts)
        else:
            new = output.sequences[:, batch.inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(new, skip_special_tokens=True)
            lengths = self._lengths(new)
        read = batch.inputs["attention_mask"].sum(1).tolist()
        first = streamer.seconds if timed else None
        return [
            Answer(text, length, count, seconds, first, report, place)
            for place, (text, length, count) in enumerate(zip(texts, lengths, read, strict=True))
        ]

    def _choice_tokens(self, prompt: Prompt, choices: Sequence[str]) -> list[int]:
        key = tuple(choices)
        if key not in self._tokens:
            self._tokens[key] = choice_tokens(self.processor, prompt, choices)
        return self._tokens[key]

    def _lengths(self, new: Tensor) -> list[int]:
        """Count the tokens of each answer with the one that ends it, without the padding after it."""
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return [
            next((number for number, token in enumerate(row, 1) if token in ends), len(row)) for row in new.tolist()
        ]
