"""Questions of a task put to one model under several methods: pictures and prompts are prepared once for all of them.

Knows how to ask, by text or by first tokens, and hands answers to the task to be graded. Knows no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from feathervlm.api import prune
from feathervlm.engine.report.report import Report
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task
from feathervlm.evaluation.tasks.study_data import Item
from feathervlm.inference import loading, prompts
from feathervlm.inference.answerer import Subject
from feathervlm.inference.choices import choose, first_tokens
from feathervlm.inference.model_spec import UNPRUNED


@dataclass(frozen=True)
class Sample:
    """One answer, graded.

    Attributes:
        question: its number in the run.
        id: of the question.
        split: which part of the data set it is of.
        answer: as written, or the choice.
        score: from 0 to 1.
        valid: whether it names a box; None if it need not.
        iou: with the true box; None if there is none.
        tokens: visual tokens per layer, averaged over layers; None if nothing was pruned.
        flops: FLOPs of the prefill over those of the unpruned one; None if nothing was pruned.
    """

    question: int
    id: str
    split: str
    answer: str
    score: float
    valid: bool | None = None
    iou: float | None = None
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True, eq=False)
class Asker:
    """A model that is asked.

    Attributes:
        subject: who answers.
        protocol: see `scoring`.
    """

    subject: Subject
    protocol: Protocol
    _tokens: dict[tuple[str, ...], list[int]] = field(default_factory=dict, repr=False)

    def ask(self, task: Task, asked: Mapping[int, Question], methods: Sequence[str]) -> dict[str, list[Sample]]:
        """Answers to some questions at once, for each method.

        Args:
            task: of the questions, all of which have the same choices, or none has any.
            asked: the questions by number.
            methods: specs, or `UNPRUNED`.

        Raises:
            PruningError: if a picture cannot be opened, a method does not fit, or a choice is not one token.
        """
        subject = self.subject
        items = [
            Item(question.id, task.name, task.prompt(question, self.protocol, subject.boxes), task.open(question))
            for question in asked.values()
        ]
        with loading.quiet(), torch.inference_mode():
            inputs = prompts.prepare_all(subject.processor, [(item.picture, item.prompt) for item in items])
            inputs = inputs.to(subject.model.device, dtype=subject.model.dtype)
            found = {}
            for method in methods:
                report = None
                if method == UNPRUNED:
                    answers = self._answer(task, items, list(asked.values()), inputs)
                else:
                    with prune(subject.model, method) as pruning:
                        answers = self._answer(task, items, list(asked.values()), inputs)
                    report = pruning.report
                found[method] = self._samples(task, items, asked, answers, report)
        return found

    def _answer(self, task: Task, items: Sequence[Item], questions: Sequence[Question], inputs: Any) -> list[str]:
        choices = questions[0].choices
        if not choices:
            return replace(self.subject, max_new_tokens=task.longest).generate(inputs)
        tokens = self._choice_tokens(items[0], choices)
        output = self.subject.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True
        )
        return [choices[number] for number in choose(output.logits[0], tokens)]

    def _choice_tokens(self, item: Item, choices: tuple[str, ...]) -> list[int]:
        if choices not in self._tokens:
            self._tokens[choices] = choice_tokens(self.subject.processor, item.prompt, choices)
        return self._tokens[choices]

    def _samples(
        self,
        task: Task,
        items: Sequence[Item],
        asked: Mapping[int, Question],
        answers: Sequence[str],
        report: Report | None,
    ) -> list[Sample]:
        costs: list[dict[str, float]] = [{}] * len(items) if report is None or not report.pruned else _costs(report)
        samples = []
        for item, (number, question), answer, cost in zip(items, asked.items(), answers, costs, strict=True):
            reading = Reading(self.protocol, item.picture.size, partial(self.subject.read, item))
            samples.append(_sample(number, question, answer, task.grade(question, answer, reading), cost))
        return samples


def choice_tokens(processor: Any, question: str, choices: Sequence[str]) -> list[int]:
    """The first token of every choice, behind a question as the chat template puts it.

    It depends on how that ends, which is the template's part and the same for all questions.

    Raises:
        PruningError: if a choice is not one token, or two begin alike.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return first_tokens(processor.tokenizer, prompt, choices)


def _costs(report: Report) -> list[dict[str, float]]:
    """What every sample cost."""
    return [
        {"tokens": round(sum(tokens) / len(tokens), 3), "flops": round(flops, 5)}
        for tokens, flops in zip(report.tokens_per_layer, report.flops_ratios, strict=True)
    ]


def _sample(number: int, question: Question, answer: str, grade: Grade, cost: dict[str, float]) -> Sample:
    score, shared = round(grade.score, 6), None if grade.iou is None else round(grade.iou, 4)
    return Sample(number, question.id, question.split, answer, score, grade.valid, shared, **cost)
