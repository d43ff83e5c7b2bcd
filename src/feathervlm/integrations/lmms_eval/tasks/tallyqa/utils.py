"""TallyQA: how many there are, simple and complex questions, answered with the letter of a count from 0 to 15."""

from feathervlm.evaluation.tasks.tallyqa import TallyQA
from feathervlm.integrations.lmms_eval.tasks_adapter import TaskAdapter

questions, pictures, prompt, target, score = TaskAdapter(TallyQA).functions
