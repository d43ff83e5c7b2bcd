"""The model that lmms-eval runs: any vision-language model that feathervlm loads, pruned with any method.

It answers conversations with pictures in batches, greedily, and tells of every sample what was pruned. Whatever goes
wrong in a batch is raised: no answer is made up. Knows lmms-eval's interface; knows no task.
"""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from loguru import logger
from tqdm import tqdm

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.core.solve import solve
from feathervlm.engine.pruning import Pruning
from feathervlm.inference.model_spec import Wanted
from feathervlm.integrations.lmms_eval.answering import Chat, Writer
from feathervlm.integrations.lmms_eval.arguments import UNPRUNED, Generation, read_batch_size, read_method
from feathervlm.integrations.lmms_eval.token_counts import PrunedCounts, of_report
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator


class FeatherVLM(lmms):
    """`--model feathervlm`.

    Args:
        pretrained: a model directory, a hub id, or `embedded` for the model that ships with the package.
        method: a spec as in `feathervlm methods`, or `none`.
        average: visual tokens per layer, averaged over layers, that the method's free parameter is solved for.
        batch_size: prompts per forward.
        device: `auto`, or a torch device.
        dtype: `auto`, or a torch type.
        attn_implementation: transformers' name of one.
        boxes: `family` asks for boxes as the model's family was trained to give them; `task` in the task's own words.
        more: further parameters of the method, see `arguments.read_method`.

    Raises:
        PruningError: if the model cannot be loaded, an argument is unknown or out of range, or a launcher started
            several processes.
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
        wanted = Wanted(pretrained, device=device, dtype=dtype, attention=attn_implementation)
        self.writer = Writer.load(wanted, self.method, self.batch_size)

    def clean(self) -> None:
        """Let go of the model, which lmms-eval does when all is answered."""
        self.__dict__.pop("writer", None)
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request, in order.

        Raises:
            PruningError: if a conversation holds anything but text and pictures, or a task asks for sampling or beams.
            Unprunable: if an input cannot be pruned.
        """
        ignored = {key for request in requests for key in Generation.of(request.args[2]).ignored}
        if ignored:
            logger.warning(f"feathervlm ignores generation_kwargs {', '.join(sorted(ignored))}.")
        # Long prompts first, so that memory runs out at once or never.
        collator = Collator(
            [request.args for request in requests], lambda one: -len(one[0]), group_fn=lambda one: one[2], grouping=True
        )
        self._settle(requests)
        results: list[GenerationResult] = []
        begun, bar = time.perf_counter(), tqdm(total=len(requests), desc="answered", disable=self.rank != 0)
        with self._pruned() as pruning, bar:
            for chunk in collator.get_batched(n=self.batch_size):
                wish = Generation.of(chunk[0][2])
                found = self._answer([self._chat(arguments, wish) for arguments in chunk], wish, pruning)
                results += found
                for arguments, result in zip(chunk, found, strict=True):
                    self.cache_hook.add_partial("generate_until", (arguments[0], arguments[2]), result.text)
                bar.update(len(chunk))
        self._log(results, time.perf_counter() - begun)
        ordered: list[GenerationResult] = collator.get_original(results)
        return ordered

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not to be had.

        Raises:
            PruningError: always.
        """
        raise PruningError(
            "This model generates and does not score given continuations; choose a task of output_type generate_until. "
            "Where one token decides, generation_kwargs can list `choices`."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not to be had.

        Raises:
            PruningError: always.
        """
        raise PruningError("This model answers in one round; choose a task of output_type generate_until.")

    def _pruned(self) -> AbstractContextManager[Pruning | None]:
        return nullcontext() if self.method is None else prune(self.writer.model, self.method)

    def _chat(self, arguments: tuple[Any, ...], wish: Generation) -> Chat:
        """The conversation of one request's arguments."""
        _, to_messages, _, number, task, split = arguments
        document = self.task_dict[task][split][number]
        asked = ChatMessages(messages=to_messages(document))
        pictures, videos, sounds = asked.extract_media()
        if videos or sounds:
            raise PruningError(
                f"Question {number} of {task} shows a video or plays a sound; this model takes pictures."
            )
        located = document[wish.box] if wish.box is not None and self.asks_for_boxes else None
        return self.writer.chat(f"question {number} of {task}", asked.to_hf_messages(), pictures, located)

    def _settle(self, requests: Sequence[Instance]) -> None:
        """Solve the method for the average, on the grids of the first request that shows a picture."""
        if self.average is None or self.method is None:
            return
        for request in requests:
            chat = self._chat(request.args, Generation.of(request.args[2]))
            if chat.pictures:
                break
        else:
            return
        with self._pruned() as pruning:
            self.writer.write([chat], Generation(max_new_tokens=1))
            assert pruning is not None
            record = pruning.report.record
        self.method = solve(self.method, self.average, record.layout.pictures[0], len(record.costs))
        self.average = None
        logger.info(f"feathervlm prunes with {self.method}")

    def _answer(self, chats: Sequence[Chat], wish: Generation, pruning: Pruning | None) -> list[GenerationResult]:
        out = self.writer.write(chats, wish)
        # A batch without pictures leaves the report of the last one that had some.
        report = pruning.report if pruning is not None and any(chat.pictures for chat in chats) else None
        results = []
        for number, (chat, text) in enumerate(zip(chats, out.texts, strict=True)):
            counts: dict[str, Any] = {"method": str(self.method or UNPRUNED)}
            if report is not None:
                counts |= of_report(report, number)
            if chat.item is not None:
                counts["written"] = text
                text = self.writer.place(chat.item, text)
            tokens = PrunedCounts(out.read[number], out.written[number], pruning=counts)
            results.append(GenerationResult(text, tokens))
        return results

    def _log(self, results: Sequence[GenerationResult], seconds: float) -> None:
        """Tell lmms-eval's summary what the run took and kept."""
        counts = [result.token_counts for result in results]
        tokens = sum(count.output_tokens for count in counts)
        pruned = [count.pruning for count in counts if count.pruning.get("visual_tokens")]
        means = {
            key: sum(one[key] for one in pruned) / len(pruned)
            for key in ("visual_tokens", "average_tokens", "selection_seconds")
            if pruned
        }
        log_metrics(seconds, tokens, tokens / seconds, means or None)
