"""Visual Spatial Reasoning: whether a statement on where two things are is true."""

from feathervlm.evaluation.tasks.vsr import VSR
from feathervlm.lmms.local import Local

_task = Local(VSR)
questions, pictures, prompt, target, score = (
    _task.questions,
    _task.pictures,
    _task.prompt,
    _task.target,
    _task.score,
)
