"""Visual Spatial Reasoning: whether a statement on where two things are is true."""

from feathervlm.evaluation.tasks.vsr import VSR
from feathervlm.integrations.lmms_eval.tasks_adapter import TaskAdapter

questions, pictures, prompt, target, score = TaskAdapter(VSR).functions
