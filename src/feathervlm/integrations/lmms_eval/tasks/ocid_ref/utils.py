"""OCID-Ref: which object in a cluttered scene a sentence means, as a box (IoU 0.25), by clutter."""

from feathervlm.evaluation.tasks.ocid_ref import SIZE, OCIDRef
from feathervlm.integrations.lmms_eval.tasks_adapter import TaskAdapter

questions, pictures, prompt, target, score = TaskAdapter(OCIDRef, SIZE).functions
