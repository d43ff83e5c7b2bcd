"""Whether a model, questions, methods and settings fit together, checked before weights are read."""

from collections.abc import Sequence

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference import loading
from feathervlm.inference.choices import choice_tokens
from feathervlm.inference.loading import CheckedModel
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt, check_prompt, has_template


def check(
    spec: ModelSpec, sets: Sequence[QuestionSet], methods: Sequence[str], protocol: Protocol = "symmetric"
) -> CheckedModel:
    """Refuse what cannot work before weights are read.

    Args:
        spec: Which model is to answer.
        sets: Questions that are to be asked.
        methods: Specs, or `UNPRUNED`.
        protocol: Rules of scoring, see `evaluation.metrics`.

    Raises:
        PruningError: Model, questions, methods or settings do not fit together; the message says which.
    """
    checked = loading.check(spec, methods)
    _check_batch(checked)
    for questions in sets:
        _check_questions(checked, questions)
    _check_boxes(checked, sets, protocol)
    return checked


def _check_batch(checked: CheckedModel) -> None:
    name, batch = checked.spec.model, checked.settings.batch
    if batch > 1 and not has_template(checked.processor):
        raise PruningError(f"batch={batch} needs a chat template, which {name} lacks; leave it at 1.")
    if batch > 1 and checked.processor.tokenizer.pad_token is None:
        raise PruningError(f"batch={batch} needs a padding token, which {name} lacks; leave it at 1.")


def _check_questions(checked: CheckedModel, questions: QuestionSet) -> None:
    task, model, processor = questions.task, checked.spec.model, checked.processor
    if isinstance(task, Embedded) and not checked.embedded:
        raise PruningError(
            f"The embedded questions are answered in <loc00> to <loc31> tokens, location tokens which {model} does not "
            "have; ask others (`eval --tasks`), or give --data FILE.jsonl (`study`)."
        )
    if task.needs_template and not has_template(processor):
        raise PruningError(f"{model} has no chat template, which tells how a question is put; add one.")
    for question in () if task.needs_template else questions.questions:
        try:
            check_prompt(processor, question.prompt)
        except PruningError as error:
            raise PruningError(f"Question {question.id!r} of {questions.name}: {error}") from None
    if task.needs_template and checked.embedded and not isinstance(task, Embedded):
        raise PruningError(
            f"{model} knows only the few words of the task embedded; give another --model for {task.name}."
        )
    first = questions.questions[0]
    if first.choices:
        choice_tokens(processor, Prompt(first.prompt), first.choices)


def _check_boxes(checked: CheckedModel, sets: Sequence[QuestionSet], protocol: Protocol) -> None:
    names = [questions.name for questions in sets if "localization" in questions.kinds.values()]
    own = any(not questions.task.needs_template for questions in sets if questions.name in names)
    if checked.boxes is not None and names and checked.boxes.scale is None:
        BoxReader.of(checked).resized((64, 64))  # refuses a processor that does not tell how it resizes pictures
    if checked.boxes is not None or not names or (protocol == "paper" and not own):
        return
    remedy = (
        "leave questions with a box out, or choose a family with a box format (`feathervlm models`)"
        if own
        else f"leave {', '.join(names)} out, or ask and read as the paper does with --protocol paper"
    )
    raise PruningError(
        f"It is not documented how a {checked.model.config.model_type} writes boxes, so {', '.join(names)} cannot be "
        f"graded; {remedy}."
    )
