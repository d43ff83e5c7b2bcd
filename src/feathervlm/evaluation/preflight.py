"""Whether a model, tasks, methods and settings fit together, asked before anything large is read.

Knows configs, processors and families; of questions only what choices they give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from feathervlm.api import prune
from feathervlm.core.boxes import BoxFormat
from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import BOXES
from feathervlm.evaluation.asking import choice_tokens
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.tasks.base import Question, Task
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.families import family_of
from feathervlm.inference import loading
from feathervlm.inference.model_spec import UNPRUNED, Wanted, is_embedded


@dataclass(frozen=True)
class Fit:
    """What is known of a model before its weights are read.

    Attributes:
        device: to run on; without a number where none is wanted.
        boxes: how it writes boxes; None if that is not known, and need not be.
    """

    device: torch.device
    boxes: BoxFormat | None


def check(wanted: Wanted, asked: Mapping[Task, Sequence[Question]], methods: Sequence[str], protocol: Protocol) -> Fit:
    """Refuse what cannot work, before weights are read.

    Args:
        wanted: who is to answer.
        asked: tasks with their questions.
        methods: specs, or `UNPRUNED`.
        protocol: see `scoring`.

    Raises:
        PruningError: if model, tasks, methods or settings do not fit together; it says which.
    """
    with loading.quiet():
        model = loading.empty_model(loading.load_config(wanted.place), wanted.attention)
        processor = loading.load_processor(wanted.place)
    embedded = is_embedded(processor)
    device, _, _, batch = wanted.settled(embedded)
    if not getattr(processor, "chat_template", None):
        raise PruningError(f"{wanted.model} has no chat template, which tells how a question is put; add one.")
    if batch > 1 and processor.tokenizer.pad_token is None:
        raise PruningError(f"batch={batch} needs a padding token, which {wanted.model} lacks; leave it at 1.")
    for task in asked:
        if isinstance(task, Embedded) and not embedded:
            raise PruningError(
                f"The task embedded is answered in location tokens, which {wanted.model} does not have; leave it out."
            )
        if embedded and not isinstance(task, Embedded):
            raise PruningError(
                f"{wanted.model} knows only the few words of the task embedded; give another --model for {task.name}."
            )
    for questions in asked.values():
        if questions[0].choices:
            choice_tokens(processor, questions[0].prompt, questions[0].choices)
    for spec in methods:
        if spec != UNPRUNED:
            prune(model, spec).remove()
    # The embedded kind is a LLaVA by its classes, but was not trained to write boxes as LLaVA does.
    boxes = BOXES if embedded else family_of(model).boxes
    if boxes is None and protocol != "paper" and any(task.localizes for task in asked):
        names = ", ".join(task.name for task in asked if task.localizes)
        raise PruningError(
            f"It is not documented how a {model.config.model_type} writes boxes; leave {names} out, or ask and read as "
            "the paper does with --protocol paper."
        )
    return Fit(device, boxes)
