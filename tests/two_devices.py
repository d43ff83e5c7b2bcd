"""A model on two devices without any: tensors of the CPU that carry the name of a device and refuse to be mixed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("xpu:0"), torch.device("xpu:1")
MOVES = {"to", "cpu", "copy_", "type_as"}
INDEXES = {"__getitem__", "__setitem__"}


class NamedDevices(TorchFunctionMode):
    """Gives every tensor the device that torch would give it, and raises where torch would refuse to mix devices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function.__name__, dict(kwargs or {})
        if function == Tensor.device.__get__:
            return device_of(args[0])
        if name == "__iter__":
            with self:
                return iter(args[0].unbind())
        if name == "to" and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], torch.device(args[1]), *args[2:])
        if isinstance(kwargs.get("device"), str):
            kwargs["device"] = torch.device(kwargs["device"])
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._check(name, given)
        wanted = [kwargs.get("device"), *(args[1:2] if name in MOVES else ())]
        target = self._target(name, given, wanted)
        if target.type == "meta":
            return function(*args, **kwargs)
        before = {id(tensor): device_of(tensor) for tensor in given}
        args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs))
        if name in ("to", "cpu") and target != device_of(args[0]):
            args = (args[0].clone(), *args[1:])  # a copy on another device is another tensor
        output = function(*args, **kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                leaf.device_name = before.get(id(leaf), target)
        return output

    @staticmethod
    def _check(name: str, given: list[Tensor]) -> None:
        devices = {device_of(tensor) for tensor in given if tensor.dim() or device_of(tensor) != CPU}
        devices -= {CPU} if name in INDEXES else set()
        if len(devices) > 1 and name not in MOVES:
            raise RuntimeError(f"{name} was given tensors of {sorted(map(str, devices))}.")

    @staticmethod
    def _target(name: str, given: list[Tensor], wanted: list[Any]) -> torch.device:
        named = next((device for device in wanted if isinstance(device, torch.device)), None)
        if named is not None or name == "cpu":
            return named or CPU
        if name in ("to", "type_as") and len(given) > 1:
            return device_of(given[1])
        devices = map(device_of, given[:1] if name in MOVES | INDEXES else given)
        return next((device for device in devices if device != CPU), CPU)


def device_of(tensor: Tensor) -> torch.device:
    """Return the device that a tensor carries."""
    return tensor.__dict__.get("device_name", CPU)


def on(device: torch.device, tree: Any) -> Any:
    """Return tensors, in any tree, on a device."""
    with NamedDevices():
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), tree)


@contextmanager
def two_devices(model: nn.Module, second: set[str]) -> Iterator[nn.Module]:
    """Give a copy of a model whose parts `second` and all inside them are on the second device, the rest on the first.

    Like accelerate, hooks move the arguments of every module to its device when it runs.

    Args:
        model: The model.
        second: Names of modules.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        device = SECOND if any(name == part or name.startswith(f"{part}.") for part in second) else FIRST
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            tensor.device_name = device
        hook = AlignDevicesHook(io_same_device=not name, skip_keys=model._skip_keys_device_placement)
        add_hook_to_module(module, hook)
        hook.execution_device = device  # only now, for the hook would move parameters itself
    with NamedDevices():
        yield model
