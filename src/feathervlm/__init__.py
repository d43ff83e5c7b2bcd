"""Prune visual tokens of Hugging Face vision-language models without losing localization.

Every name is imported on first use, so that `import feathervlm` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feathervlm import bench, embedded, methods, study
    from feathervlm.api import prompt_end, prune
    from feathervlm.core.criteria.attention import LastTokenAttention
    from feathervlm.core.criteria.features import KNNDensity
    from feathervlm.core.errors import PlacementWarning, PruningError, Unprunable, UnprunedWarning
    from feathervlm.core.layout import VisualLayout
    from feathervlm.core.schedule import Schedule, Stage
    from feathervlm.core.selectors.basic import Grid, Random, Top
    from feathervlm.engine.pruning import Pruning
    from feathervlm.engine.report.report import Report
    from feathervlm.utils.pictures import open_picture

    __version__: str

_MODULES = {
    "Grid": "core.selectors.basic",
    "KNNDensity": "core.criteria.features",
    "LastTokenAttention": "core.criteria.attention",
    "PlacementWarning": "core.errors",
    "Pruning": "engine.pruning",
    "PruningError": "core.errors",
    "Random": "core.selectors.basic",
    "Report": "engine.report.report",
    "Schedule": "core.schedule",
    "Stage": "core.schedule",
    "Top": "core.selectors.basic",
    "Unprunable": "core.errors",
    "UnprunedWarning": "core.errors",
    "VisualLayout": "core.layout",
    "open_picture": "utils.pictures",
    "prompt_end": "api",
    "prune": "api",
}
"""The module of this package that defines each public name."""

_PACKAGES = ("bench", "embedded", "methods", "study")

__all__ = [
    "Grid",
    "KNNDensity",
    "LastTokenAttention",
    "PlacementWarning",
    "Pruning",
    "PruningError",
    "Random",
    "Report",
    "Schedule",
    "Stage",
    "Top",
    "Unprunable",
    "UnprunedWarning",
    "VisualLayout",
    "__version__",
    "bench",
    "embedded",
    "methods",
    "open_picture",
    "prompt_end",
    "prune",
    "study",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("feathervlm")
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
