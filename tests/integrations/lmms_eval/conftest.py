"""What the tests of the lmms-eval plug-in share: an offline home, a way to evaluate, and requests made by hand.

lmms-eval is an extra. Modules that need it skip themselves if it is not installed; `requirements.txt` lists what to
install, without dependencies.
"""

from collections.abc import Iterator

import pytest
from PIL import ImageFile


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and caches of their own; datasets reads this when it is first imported, inside a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(autouse=True)
def strict_pictures() -> Iterator[None]:
    """lmms-eval makes Pillow read truncated pictures, in the whole process and for all tests that follow."""
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.fixture(scope="session")
def evaluate(offline):
    """lmms-eval's own evaluation, with our tasks and those of lmms-eval that are named by their folders."""
    from pathlib import Path

    import lmms_eval.tasks
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2

    from feathervlm.integrations.lmms_eval import TASKS, manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # what the entry point does once installed
    known = Path(lmms_eval.tasks.__file__).parent

    def run(model, tasks, folders=(), **options):
        # Indexing all of lmms-eval's tasks takes a quarter of a minute.
        paths = [str(TASKS), *(str(known / folder) for folder in folders)]
        manager = lmms_eval.tasks.TaskManager(include_path=paths, include_defaults=False, model_name="feathervlm")
        return simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)

    return run


@pytest.fixture
def requests_for():
    """Requests as lmms-eval makes them, of (document, messages, generation_kwargs) each; sets the model's documents."""
    from lmms_eval.api.instance import Instance

    def make(model, asked):
        model.task_dict = {"made": {"test": [document for document, *_ in asked]}}
        return [
            Instance(
                "generate_until",
                (f"question {number}", lambda _, messages=messages: messages, options, number, "made", "test"),
                0,
                {"task": "made", "doc_id": number, "repeats": 1},
            )
            for number, (_, messages, options) in enumerate(asked)
        ]

    return make
