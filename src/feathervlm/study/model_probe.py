"""A first look at a model before it is studied: one question, pruned at random, tells depth, grid and RoPE prior."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import GridShape
from feathervlm.diagnosis.rope_prior import NoPrior, heard_tables, prior_layer, prior_map
from feathervlm.engine.decoder import DecoderView
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from feathervlm.study.plan import EARLY, Plan


@dataclass(frozen=True)
class Look:
    """What one question tells of a model: its depth, its grid, and what RoPE alone would look at."""

    depth: int
    shape: GridShape
    prior: NDArray[np.float64] | None
    no_prior: str


def look_at(spec: ModelSpec, data: QuestionSet) -> Look:
    """Ask one question, localization if there is any, and see what the model's decoder is given.

    Raises:
        PruningError: if the model cannot be pruned.
    """
    answerer = Answerer(load(spec))
    first = next((number for number, question in enumerate(data.questions) if question.box), 0)
    question, picture = data.item(first)
    decoder = DecoderView(answerer.model)
    why, prior = "", None
    layer = -1
    try:
        layer = prior_layer(decoder, Plan(len(decoder.layers), (1, 1, 1)).layer(EARLY))
    except NoPrior as error:
        why = str(error)
    with heard_tables(answerer.model, [max(layer, 0)]) as heard:
        report = answerer.look([Prompt(question.prompt, (picture,))], "random:keep=0.5")
    if not report.pruned:
        raise PruningError(f"The study needs questions about pictures, and {report.reason}.")
    frames, rows, cols = report.grid().shape
    if layer >= 0:
        try:
            prior = prior_map(report.record, heard[layer])
        except NoPrior as error:
            why = str(error)
    return Look(len(decoder.layers), (frames, rows, cols), prior, why.rstrip("."))
