"""The paper's experiments as code, for the embedded model or any other, and the diagnosis of any method without labels.

`run` answers a `Request`: a model (`ModelSpec`) and a task (`Embedded`, or the user's own questions as `Jsonl`).
`diagnosis.diagnose` needs pictures only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.evaluation.tasks.embedded import Embedded
    from feathervlm.evaluation.tasks.jsonl import Jsonl
    from feathervlm.inference.model_spec import ModelSpec
    from feathervlm.study.run_study import Request, Study, run

# These import transformers and matplotlib, which takes seconds that `feathervlm --help` need not wait for.
_LATE = {
    "Embedded": "feathervlm.evaluation.tasks.embedded",
    "Jsonl": "feathervlm.evaluation.tasks.jsonl",
    "ModelSpec": "feathervlm.inference.model_spec",
    "Request": "feathervlm.study.run_study",
    "Study": "feathervlm.study.run_study",
    "run": "feathervlm.study.run_study",
}

__all__ = ["Embedded", "Jsonl", "ModelSpec", "Request", "Study", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.study' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
