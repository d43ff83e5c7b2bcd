"""The plug-in for lmms-eval: a model that prunes, the tasks that lmms-eval lacks, and the paper's suite.

lmms-eval finds the model through the entry point of this package and the tasks through `--include_path`. It is an
extra, `feathervlm[eval]`; this module imports it only in `manifest`.
"""

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"
"""Directory of the task files; `python -m feathervlm.integrations.lmms_eval` prints it."""


def manifest() -> Any:
    """Return the entry of the registry of lmms-eval: the model `feathervlm`, which is asked through messages."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="feathervlm", chat_class_path="feathervlm.integrations.lmms_eval.model.FeatherVLM")
