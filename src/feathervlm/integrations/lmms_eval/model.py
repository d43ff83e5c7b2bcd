"""The model that lmms-eval runs: any vision-language model that feathervlm loads, pruned with any method.

It answers conversations with pictures in batches, greedily, and reports for every sample what was pruned. An error in
a batch is raised, so that no answer is made up.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from loguru import logger
from PIL import Image
from tqdm import tqdm

from feathervlm.core.boxes import Size
from feathervlm.core.errors import PruningError
from feathervlm.core.solve import solve
from feathervlm.embedded.vocabulary import check_words
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answer, Answerer
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt, has_template
from feathervlm.integrations.lmms_eval.arguments import Generation, read_batch_size, read_method
from feathervlm.integrations.lmms_eval.scoring import write_fractions
from feathervlm.integrations.lmms_eval.token_counts import PrunedCounts, of_report

NO_BOX = "no box"
"""The answer to a question for a box that names none."""


@dataclass(frozen=True, eq=False)
class BoxPrompt:
    """A prompt and the size of its picture if it asks for a box."""

    prompt: Prompt
    size: Size | None = None


class FeatherVLM(lmms):
    """`--model feathervlm`.

    Args:
        pretrained: Directory of a model, id on the hub, or `embedded` for the model that ships with the package.
        method: Spec as in `feathervlm methods`, or `unpruned`.
        average: Visual tokens per layer, averaged over layers, that the free parameter of the method is solved for.
        batch_size: Prompts per forward.
        device: `auto`, or a torch device.
        dtype: `auto`, or a torch type.
        attn_implementation: Name of an attention implementation of transformers.
        boxes: `family` asks for boxes in the words of the model's family; `task` in the words of the task.
        more: Further parameters of the method, see `arguments.read_method`.

    Raises:
        PruningError: The model cannot be loaded, an argument is unknown or out of range, or a launcher started several
            processes.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = UNPRUNED,
        average: float | None = None,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        boxes: str = "family",
        **more: Any,
    ) -> None:
        super().__init__()
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1":
            raise PruningError(
                f"This model answers in one process, not {processes}; start lmms-eval without a launcher."
            )
        self.method = read_method(method, more)
        self.average = average
        if average is not None and self.method is None:
            raise PruningError(f"average={average} is a budget, and there is no method to solve for it; name one.")
        if boxes not in ("family", "task"):
            raise PruningError(f"boxes={boxes!r} is neither family nor task.")
        self.asks_for_boxes = boxes == "family"
        self.batch_size = read_batch_size(batch_size)
        spec = ModelSpec(pretrained, device, dtype, attn_implementation, batch=self.batch_size)
        checked = loading.check(spec, [self.method])
        if not has_template(checked.processor):
            raise PruningError(
                f"{pretrained} has no chat template, through which questions are put; choose one with it."
            )
        if self.batch_size > 1 and checked.processor.tokenizer.pad_token is None:
            raise PruningError(
                f"batch_size={self.batch_size} needs a padding token, which {pretrained} lacks; leave it at 1."
            )
        loaded = checked.load()
        self.answerer, self.boxes = Answerer(loaded), BoxReader.of(loaded)

    def clean(self) -> None:
        """Release the model, which lmms-eval does after the last answer."""
        self.__dict__.pop("answerer", None)
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request, in order.

        Raises:
            PruningError: A conversation holds anything but text and pictures, or a task asks for sampling or beams.
            Unprunable: An input cannot be pruned.
        """
        ignored = {key for request in requests for key in Generation.of(request.args[2]).ignored}
        if ignored:
            logger.warning(f"feathervlm ignores generation_kwargs {', '.join(sorted(ignored))}.")
        # Long prompts first, so that memory runs out at once or never.
        collator = Collator(
            [request.args for request in requests], lambda one: -len(one[0]), group_fn=lambda one: one[2], grouping=True
        )
        self._solve(requests)
        results: list[GenerationResult] = []
        begun, bar = time.perf_counter(), tqdm(total=len(requests), desc="answered", disable=self.rank != 0)
        with bar:
            for chunk in collator.get_batched(n=self.batch_size):
                generation = Generation.of(chunk[0][2])
                answered = self._answer([self._prompt(arguments, generation) for arguments in chunk], generation)
                results += answered
                for arguments, result in zip(chunk, answered, strict=True):
                    self.cache_hook.add_partial("generate_until", (arguments[0], arguments[2]), result.text)
                bar.update(len(chunk))
        self._log(results, time.perf_counter() - begun)
        ordered: list[GenerationResult] = collator.get_original(results)
        return ordered

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse; this model scores no continuations.

        Raises:
            PruningError: Always.
        """
        raise PruningError(
            "This model generates and does not score given continuations; choose a task of output_type generate_until. "
            "Where one token decides, generation_kwargs can list `choices`."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse; this model answers in one round.

        Raises:
            PruningError: Always.
        """
        raise PruningError("This model answers in one round; choose a task of output_type generate_until.")

    def _prompt(self, arguments: tuple[Any, ...], generation: Generation) -> BoxPrompt:
        """Return the conversation of a request, or the question for a box in the words of the model's family."""
        _, to_messages, _, number, task, split = arguments
        document = self.task_dict[task][split][number]
        asked = ChatMessages(messages=to_messages(document))
        pictures, videos, sounds = asked.extract_media()
        name = f"question {number} of {task}"
        if videos or sounds:
            raise PruningError(f"{name.capitalize()} shows a video or plays a sound; this model takes pictures.")
        if generation.box is not None and self.asks_for_boxes:
            found = self.box_prompt(name, pictures, document[generation.box])
        else:
            found = BoxPrompt(Prompt("", tuple(pictures), asked.to_hf_messages()))
        if self.answerer.loaded.embedded:
            parts = [part for message in found.prompt.messages for part in message["content"]]
            check_words(self.answerer.processor, [part["text"] for part in parts if part["type"] == "text"])
        return found

    def box_prompt(self, name: str, pictures: Sequence[Any], description: str) -> BoxPrompt:
        """Return the question for the box of what is described, in the words of the model's family.

        Raises:
            PruningError: The box format of the family is not known, or there is not exactly one picture.
        """
        if self.boxes.format is None:
            raise PruningError(
                f"It is not documented how a {self.answerer.model.config.model_type} writes boxes, as {name} asks for; "
                "add boxes=task to --model_args to ask in the task's own words."
            )
        if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
            raise PruningError(f"{name} asks for a box in {len(pictures)} pictures; it takes one, opened.")
        return BoxPrompt(Prompt(self.boxes.format.ask(description), tuple(pictures)), pictures[0].size)

    def place(self, text: str, size: Size) -> str:
        """Return the box that an answer names as fractions of the picture, or `NO_BOX`."""
        box = self.boxes.read(text.strip(), size)
        return NO_BOX if box is None else write_fractions(box, size)

    def _solve(self, requests: Sequence[Instance]) -> None:
        """Solve the method for the average, on the grids of the first request that shows a picture."""
        if self.average is None or self.method is None:
            return
        for request in requests:
            prompt = self._prompt(request.args, Generation.of(request.args[2])).prompt
            if prompt.images:
                record = self.answerer.look([prompt], self.method).record
                self.method = solve(self.method, self.average, record.layout.pictures[0], len(record.costs))
                self.average = None
                logger.info(f"feathervlm prunes with {self.method}")
                return

    def _answer(self, asked: Sequence[BoxPrompt], generation: Generation) -> list[GenerationResult]:
        answers = self.answerer.answer(
            self.answerer.prepare([one.prompt for one in asked]),
            self.method,
            choices=generation.choices,
            max_new_tokens=generation.max_new_tokens,
        )
        return [self._result(one, answer, generation) for one, answer in zip(asked, answers, strict=True)]

    def _result(self, asked: BoxPrompt, answer: Answer, generation: Generation) -> GenerationResult:
        text, counts = generation.cut(answer.written), dict[str, Any](method=str(self.method or UNPRUNED))
        if answer.report is not None:
            counts |= of_report(answer.report, answer.place)
        if asked.size is not None:
            counts["written"] = text
            text = self.place(text, asked.size)
        return GenerationResult(text, PrunedCounts(answer.prompt_tokens, answer.tokens, pruning=counts))

    def _log(self, results: Sequence[GenerationResult], seconds: float) -> None:
        """Log what the run took and kept for the summary of lmms-eval."""
        counts = [result.token_counts for result in results]
        tokens = sum(count.output_tokens for count in counts)
        pruned = [count.pruning for count in counts if count.pruning.get("visual_tokens")]
        means = {
            key: sum(one[key] for one in pruned) / len(pruned)
            for key in ("visual_tokens", "average_tokens", "selection_seconds")
            if pruned
        }
        log_metrics(seconds, tokens, tokens / seconds, means or None)
