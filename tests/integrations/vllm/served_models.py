"""vLLM engines in this process, and what the pruned transformers model answers to the same prompts."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

import feathervlm
from feathervlm.serving.choose import Chooser

NEW_TOKENS = 12


@dataclass(frozen=True)
class Ask:
    """A prompt: its pictures, its text, and the method."""

    images: tuple[Image.Image, ...]
    text: str
    method: str | None = None


@dataclass
class Reply:
    """What came back: new tokens, number of tokens of the prompt, and the kept tokens of every picture."""

    tokens: list[int]
    prompt: int
    kept: list[list[int]] = field(default_factory=list)


class HuggingFace:
    """The transformers model, pruned by the HF engine."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def text(self, ask: Ask) -> str:
        """Return the prompt with one placeholder for each picture."""
        content = [{"type": "image"}] * len(ask.images) + [{"type": "text", "text": ask.text}]
        chat = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    def ids(self, ask: Ask) -> list[int]:
        """Return the token ids of that."""
        return self.processor.tokenizer(self.text(ask), add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def reply(self, ask: Ask) -> Reply:
        """Answer greedily."""
        inputs = self.processor(
            text=[self.text(ask)], images=list(ask.images) or None, return_tensors="pt", add_special_tokens=False
        )
        length = inputs["input_ids"].shape[1]
        with feathervlm.prune(self.model, ask.method) if ask.method else nullcontext() as pruning:
            output = self.model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
            )
        if pruning is None:
            return Reply(output[0, length:].tolist(), length)
        kept, place = pruning.report.stages[-1].kept[0], pruning.report.layout.geometry().image[0]
        own = [(kept[place[kept] == image] - int((place < image).sum())).tolist() for image in range(len(ask.images))]
        return Reply(output[0, length:].tolist(), length - len(place) + len(kept), own)


class Served:
    """A vLLM engine in this process."""

    def __init__(self, path: str, hf: HuggingFace, **options: Any) -> None:
        from vllm import LLM

        self.hf = hf
        eager = not os.environ.get("FEATHERVLM_VLLM_COMPILE")
        self.llm = LLM(path, dtype="float32", enforce_eager=eager, **options)
        self.chosen: list[list[int]] = []
        choose = Chooser.choose

        def recording(chooser: Chooser, schedule: Any, prompts: Any) -> Any:
            choices = choose(chooser, schedule, prompts)
            self.chosen += [choice.kept.tolist() for choice in choices]
            return choices

        Chooser.choose = recording  # type: ignore[method-assign]

    def replies(self, asks: list[Ask]) -> list[Reply]:
        """Answer prompts together, greedily; `kept` is empty."""
        return [Reply(list(output.outputs[0].token_ids), len(output.prompt_token_ids)) for output in self._run(asks)]

    def cached_tokens(self, ask: Ask) -> int:
        """Answer a prompt, and return how many of its tokens came from the cache."""
        return self._run([ask])[0].num_cached_tokens

    def _run(self, asks: list[Ask]) -> Any:
        from vllm import SamplingParams

        requests = []
        for ask in asks:
            request: dict[str, Any] = {"prompt_token_ids": self.hf.ids(ask)}
            if ask.images:
                request["multi_modal_data"] = {"image": list(ask.images)}
            if ask.method is not None:
                request["mm_processor_kwargs"] = {"feathervlm": ask.method}
            requests.append(request)
        sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
        return self.llm.generate(requests, sampling, use_tqdm=False)

    def reply(self, ask: Ask) -> Reply:
        """Answer one prompt, with what was kept; nothing is in a cache."""
        self.llm.reset_mm_cache()
        self.llm.reset_prefix_cache()
        self.chosen.clear()
        (reply,) = self.replies([ask])
        return Reply(reply.tokens, reply.prompt, list(self.chosen))
