"""OCID-Ref: which object in a cluttered scene a sentence means, as a box (IoU 0.25), by clutter."""

from feathervlm.evaluation.tasks.ocid_ref import SIZE, OCIDRef
from feathervlm.lmms.local import Local

_task = Local(OCIDRef, SIZE)
questions, pictures, prompt, target, score = (
    _task.questions,
    _task.pictures,
    _task.prompt,
    _task.target,
    _task.score,
)
