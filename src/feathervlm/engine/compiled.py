"""Running a compiled model without its graphs for as long as it is pruned.

`torch.compile` does not notice hooks that are registered after it has traced a module, so a graph made before would
skip the pruning without a word.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


class Uncompiled:
    """A handle, like those of hooks: the modules run their own code until `remove()` gives the graphs back.

    It covers `torch.compile(module)`, `module.compile()` and `module.forward = torch.compile(module.forward)`.

    Args:
        modules: Modules, each of which may be compiled.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        for module in modules:
            own = vars(module)
            original = compiled_module(module)
            if original is not None:
                self._replace(module, "forward", original.__call__)
            elif hasattr(own.get("forward"), "_torchdynamo_orig_callable"):
                self._replace(module, "forward", own["forward"]._torchdynamo_orig_callable)
            if own.get("_compiled_call_impl") is not None:
                self._replace(module, "_compiled_call_impl", None)

    def _replace(self, module: nn.Module, name: str, value: Any) -> None:
        # Not setattr(), which a compiled module passes on to the module inside.
        self._replaced.append((module, name, vars(module)[name]))
        vars(module)[name] = value

    def remove(self) -> None:
        """Give the modules their graphs back."""
        for module, name, value in self._replaced:
            vars(module)[name] = value
        self._replaced = []


def compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile(module)` wraps, or None if `module` is not such a wrapper."""
    original = vars(module).get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else None
