"""The paper's experiments as code, for the embedded model or any other, and the diagnosis of any method without labels.

`run` answers a `Request`: a model (`Wanted`) and questions (`EmbeddedData`, or the user's own as `JsonlData`).
`diagnosis.diagnose` needs pictures only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.study.data import EmbeddedData
    from feathervlm.study.jsonl import JsonlData
    from feathervlm.study.running import Request, Study, run
    from feathervlm.study.subject import Wanted

# These import transformers and matplotlib, which takes seconds that `feathervlm --help` need not wait for.
_LATE = {
    "EmbeddedData": "feathervlm.study.data",
    "JsonlData": "feathervlm.study.jsonl",
    "Request": "feathervlm.study.running",
    "Study": "feathervlm.study.running",
    "Wanted": "feathervlm.study.subject",
    "run": "feathervlm.study.running",
}

__all__ = ["EmbeddedData", "JsonlData", "Request", "Study", "Wanted", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.study' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
