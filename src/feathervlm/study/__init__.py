"""The paper's experiments as code, for the embedded model or any other.

>>> from feathervlm.study import ModelSpec, StudyQuestions, StudyRequest, run  # doctest: +SKIP
>>> questions = StudyQuestions.of(["embedded"], n=24)  # doctest: +SKIP
>>> run(StudyRequest(ModelSpec("embedded"), questions, Path("study"), quick=True))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm.inference.model_spec import ModelSpec
    from feathervlm.study.questions import StudyQuestions
    from feathervlm.study.run_study import Study, StudyRequest, run

# These modules import transformers and matplotlib, which takes seconds, so they are imported on first use.
_LATE = {
    "ModelSpec": "feathervlm.inference.model_spec",
    "Study": "feathervlm.study.run_study",
    "StudyQuestions": "feathervlm.study.questions",
    "StudyRequest": "feathervlm.study.run_study",
    "run": "feathervlm.study.run_study",
}

__all__ = ["ModelSpec", "Study", "StudyQuestions", "StudyRequest", "run"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'feathervlm.study' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
