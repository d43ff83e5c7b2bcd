"""What a study has to know of a model before it plans: depth, grid and RoPE prior, measured with one question."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import GridShape
from feathervlm.diagnosis.rope_prior import NoPrior, prior_layer, prior_map, recorded_tables
from feathervlm.engine.decoder import DecoderView
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from feathervlm.study.plan import EARLY, Plan
from feathervlm.study.questions import StudyQuestions
from feathervlm.utils import files


@dataclass(frozen=True, eq=False)
class ModelProbe:
    """What one question shows of a model.

    Attributes:
        depth: Number of decoder layers.
        shape: Grid (frames, rows, cols) of the picture.
        prior: RoPE prior of shape (frames, rows, cols); None if there is none.
        no_prior: Reason why there is no prior.
    """

    depth: int
    shape: GridShape
    prior: NDArray[np.float64] | None
    no_prior: str

    @classmethod
    def read(cls, path: Path, key: dict[str, Any]) -> "ModelProbe | None":
        """Return the probe that `write` stored with the same key, None if there is none."""
        try:
            document = files.read_json(path, "it is measured again", dict) if path.exists() else {}
            if document.get("key") != json.loads(json.dumps(key)):
                return None
        except PruningError:  # torn, which costs one question
            return None
        depth, (frames, rows, cols), prior, no_prior = (document[field.name] for field in fields(cls))
        return cls(depth, (frames, rows, cols), None if prior is None else np.array(prior), no_prior)

    def write(self, path: Path, key: dict[str, Any]) -> None:
        """Store the probe.

        Args:
            path: File to write.
            key: What the probe depends on.
        """
        prior = None if self.prior is None else self.prior.tolist()
        files.make_directory(path.parent)
        files.write_json(path, {**asdict(self), "prior": prior, "key": key})


def probe_model(spec: ModelSpec, questions: StudyQuestions) -> ModelProbe:
    """Ask one question, for localization if there is any, and record what the decoder is given.

    Raises:
        PruningError: The model cannot be loaded or pruned.
    """
    loaded = load(spec)
    answerer = Answerer(loaded)
    kinds = [questions.kinds[task] for task in questions.tasks]
    number = kinds.index("localization") if "localization" in kinds else 0
    question, picture = questions.item(number)
    task = questions.locate(number)[0].task
    prompt = Prompt(task.prompt(question, "symmetric", loaded.boxes), (picture,))
    decoder = DecoderView(answerer.model)
    depth, why, prior, layer = len(decoder.layers), "", None, None
    try:
        layer = prior_layer(decoder, Plan(depth, (1, 1, 1)).layer(EARLY))
    except NoPrior as error:
        why = str(error)
    with recorded_tables(answerer.model, [] if layer is None else [layer]) as tables:
        report = answerer.look([prompt], "random:keep=0.5")
    if not report.pruned:
        raise PruningError(f"The study needs questions about pictures, and {report.reason}.")
    frames, rows, cols = report.grid().shape
    if layer is not None:
        try:
            prior = prior_map(report.record, tables[layer])
        except NoPrior as error:
            why = str(error)
    return ModelProbe(depth, (frames, rows, cols), prior, why.rstrip("."))
