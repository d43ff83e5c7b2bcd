"""Running a compiled model without its graphs for as long as it is pruned.

`torch.compile` does not notice hooks that are registered after it has traced a module, so a graph made before would
skip the pruning without a word; and a prompt is pruned by Python code that no graph can hold.
"""

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

COMPILED = "_torchdynamo_orig_callable"
"""Attribute of a compiled function that holds the original."""

MISSING = object()
REASON = (
    "feathervlm prunes the prompts of this model by hooks that no graph can hold; compile its caller without "
    "fullgraph=True, or leave the forward that brings images out of it"
)

Function = TypeVar("Function", bound=Callable[..., Any])


class Replaced:
    """Attributes of modules' instances that are replaced until `remove()`."""

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, Any, Any]] = []

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module's instance."""
        own = vars(module)  # not setattr(), which a compiled module passes on to the module inside
        self._replaced.append((module, name, own.get(name, MISSING), value))
        own[name] = value

    def remove(self) -> None:
        """Restore the attributes, but for those that somebody else has replaced since."""
        for module, name, before, value in reversed(self._replaced):
            own = vars(module)
            if own.get(name, MISSING) is not value:
                continue
            if before is MISSING:
                del own[name]
            else:
                own[name] = before
        self._replaced = []


class Uncompiled(Replaced):
    """A handle, like those of hooks: modules run their own code until `remove()` gives the graphs back.

    It covers `torch.compile(module)`, `module.compile()`, and a compiled `forward` of a module or a class.
    """

    def add(self, *modules: nn.Module) -> None:
        """Let those of the modules, and of the modules inside them, that are compiled run their own code."""
        remaining, seen = list(modules), set(modules)
        while remaining:  # as .modules(), which takes much longer, and this runs before every prompt
            module = remaining.pop()
            for part in module.__dict__["_modules"].values():
                if part is not None and part not in seen:
                    seen.add(part)
                    remaining.append(part)
            self.add_one(module)

    def add_one(self, module: nn.Module) -> None:
        """Let a module run its own code, whether the modules inside it do or not."""
        own, kind = module.__dict__, type(module)
        if "forward" in own or COMPILED in getattr(kind.forward, "__dict__", ()):
            # Below the forward of accelerate, which moves tensors, is the module's own one.
            for name, function in (("forward", module.forward), ("_old_forward", own.get("_old_forward"))):
                if uncompiled(function) is not function:
                    self.set(module, name, uncompiled(function))
        if own.get("_compiled_call_impl") is not None:
            self.set(module, "_compiled_call_impl", None)


class OutsideGraphs(Replaced):
    """A handle: calls of a module, hooks included, run outside the graphs of functions that call it, until `remove()`.

    A graph that was made before has the module's code in it without hooks. Its guards look for a `forward` of the
    instance, so that it is not used while the module has one.

    Args:
        module: The module.
        traced: Function from the arguments of a call to whether a graph may hold it, hooks included.
        begin: Callback before every call outside graphs.
        end: Callback after every such call, one that ended in an exception or an interrupt included.
    """

    def __init__(
        self,
        module: nn.Module,
        traced: Callable[[dict[str, Any]], bool],
        begin: Callable[[nn.Module], None],
        end: Callable[[], None],
    ) -> None:
        super().__init__()
        forward, call = module.forward, module._call_impl

        @outside_graphs
        def feathervlm_prunes_outside_graphs(*args: Any, **kwargs: Any) -> Any:
            begin(module)
            try:
                return call(*args, **kwargs)
            finally:
                end()

        def guarded_call(*args: Any, **kwargs: Any) -> Any:
            if self._removed or (torch.compiler.is_compiling() and traced(kwargs)):
                return call(*args, **kwargs)
            return feathervlm_prunes_outside_graphs(*args, **kwargs)

        @functools.wraps(forward)
        def own_forward(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        self._removed = False  # who has compiled one of these meanwhile keeps it
        self.set(module, "_call_impl", guarded_call)
        self.set(module, "forward", own_forward)

    def remove(self) -> None:
        self._removed = True
        super().remove()


def outside_graphs(function: Function) -> Function:
    """Return a function that runs outside graphs, so that no graph can hold a call of it."""
    named = "reason" in inspect.signature(torch.compiler.disable).parameters
    disabled: Function = torch.compiler.disable(function, **({"reason": REASON} if named else {}))
    return disabled


def uncompiled(function: Any) -> Any:
    """Return the function that `torch.compile(function)` wraps; any other is returned unchanged."""
    if isinstance(function, MethodType):
        inside = uncompiled(function.__func__)
        return function if inside is function.__func__ else MethodType(inside, function.__self__)
    original = getattr(function, COMPILED, None)
    # A wrapper around a compiled function has its attributes, too; only the compiled one wraps the original itself.
    return function if original is None or function.__wrapped__ is not original else original


def compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile(module)` wraps, or None if `module` is not such a wrapper."""
    original = vars(module).get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else None
