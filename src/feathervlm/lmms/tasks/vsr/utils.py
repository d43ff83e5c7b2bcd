"""Visual Spatial Reasoning: whether a statement on where two things are is true."""

from feathervlm.evaluation.tasks.vsr import VSR
from feathervlm.lmms.local import Local

questions, pictures, prompt, target, score = Local(VSR).functions
