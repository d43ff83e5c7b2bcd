"""The paper's experiments as code, for the embedded model or any other, and the diagnosis of any method without labels.

`run` answers a `Request`: a model (`Wanted`) and questions (`EmbeddedData`, or the user's own as `JsonlData`).
`diagnosis.diagnose` needs pictures only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.evaluation.tasks.jsonl import JsonlData
    from feathervlm.evaluation.tasks.study_data import EmbeddedData
    from feathervlm.inference.answerer import Wanted
    from feathervlm.study.run_study import Request, Study, run

# These import transformers and matplotlib, which takes seconds that `feathervlm --help` need not wait for.
_LATE = {
    "EmbeddedData": "feathervlm.evaluation.tasks.study_data",
    "JsonlData": "feathervlm.evaluation.tasks.jsonl",
    "Request": "feathervlm.study.run_study",
    "Study": "feathervlm.study.run_study",
    "Wanted": "feathervlm.inference.answerer",
    "run": "feathervlm.study.run_study",
}

__all__ = ["EmbeddedData", "JsonlData", "Request", "Study", "Wanted", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.study' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
