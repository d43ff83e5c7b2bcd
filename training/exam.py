"""Asks an exported model held-out questions about the scenes of `training.world`, unpruned and greedily.

`scripts/embedded_quality.py` measures the same, and more, once these scenes have replaced the old ones.
"""

from pathlib import Path

import numpy as np
import torch
import typer

from feathervlm.evaluation.statistics import wilson
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from training.world.questions import grade
from training.world.tasks import HELD_OUT, TASKS, sample

BATCH = 20


def examine(directory: Path, count: int, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the accuracy on each task with its 95 % interval.

    Args:
        directory: Model directory that `export` wrote.
        count: Number of questions per task.
        seed: Seed of the held-out questions.
    """
    answerer = Answerer(load(ModelSpec(str(directory), batch=BATCH)))
    found = {}
    for task in TASKS:
        right: list[bool] = []
        for start in range(0, count, BATCH):
            pairs = [sample(task, HELD_OUT + seed, index) for index in range(start, min(start + BATCH, count))]
            with torch.inference_mode():
                answers = answerer.ask([Prompt(question.text, (scene.image,)) for scene, question in pairs])
            right += [grade(question, answer.text)[0] for (_, question), answer in zip(pairs, answers, strict=True)]
        interval = wilson(np.array(right))
        found[task] = interval.to_dict()
        typer.echo(f"{task}: {interval}")
    return found
