"""Visual Spatial Reasoning: whether a statement on where two things are is true."""

from feathervlm.evaluation.tasks.vsr import VSR
from feathervlm.integrations.lmms_eval.tasks_adapter import Local

questions, pictures, prompt, target, score = Local(VSR).functions
