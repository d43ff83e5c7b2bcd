"""A first look at a model before it is studied: one question, pruned at random, tells depth, grid and RoPE prior."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from feathervlm.api import prune
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import GridShape
from feathervlm.diagnosis.rope_prior import NoPrior, heard_tables, prior_layer, prior_map
from feathervlm.engine.decoder import DecoderView
from feathervlm.evaluation.tasks.study_data import Data
from feathervlm.inference import answerer
from feathervlm.inference.model_spec import Wanted
from feathervlm.study.plan import EARLY, Plan


@dataclass(frozen=True)
class Look:
    """What one question tells of a model: its depth, its grid, and what RoPE alone would look at."""

    depth: int
    shape: GridShape
    prior: NDArray[np.float64] | None
    no_prior: str


def look_at(wanted: Wanted, data: Data) -> Look:
    """Ask one question, localization if there is any, and see what the model's decoder is given.

    Raises:
        PruningError: if the model cannot be pruned.
    """
    answering = answerer.load(wanted, data)
    tasks = data.tasks()
    first = next((number for number, task in enumerate(tasks) if data.kinds[task] == "localization"), 0)
    decoder = DecoderView(answering.model)
    why, prior = "", None
    layer = -1
    try:
        layer = prior_layer(decoder, Plan(len(decoder.layers), (1, 1, 1)).layer(EARLY))
    except NoPrior as error:
        why = str(error)
    with prune(answering.model, "random:keep=0.5") as pruning, torch.inference_mode():
        with heard_tables(answering.model, [max(layer, 0)]) as heard:
            answering.answer([data.item(first)])
        if not pruning.report.pruned:
            raise PruningError(f"The study needs questions about pictures, and {pruning.report.reason}.")
        frames, rows, cols = pruning.report.grid().shape
        if layer >= 0:
            try:
                prior = prior_map(pruning.report.record, heard[layer])
            except NoPrior as error:
                why = str(error)
    return Look(len(decoder.layers), (frames, rows, cols), prior, why.rstrip("."))
