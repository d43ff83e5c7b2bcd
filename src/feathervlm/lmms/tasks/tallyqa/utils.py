"""TallyQA: how many there are, simple and complex questions, answered with the letter of a count from 0 to 15."""

from feathervlm.evaluation.tasks.tallyqa import TallyQA
from feathervlm.lmms.local import Local

_task = Local(TallyQA)
questions, pictures, prompt, target, score = (
    _task.questions,
    _task.pictures,
    _task.prompt,
    _task.target,
    _task.score,
)
