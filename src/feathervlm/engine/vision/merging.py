"""Merging patches inside the vision encoder while it runs, so that its later layers see fewer.

Between the attention and the MLP of a layer a hook cannot shorten the residual that is added to both. So the norm in
between gets the merged states, the MLP runs on them, its output is expanded again, and the sum is merged after the
layer: the mean of a group plus one vector that is added to each of its members is exactly the merged state plus that
vector. After the last layer, and in the states of every layer that the encoder returns, each patch gets a copy of its
group.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.encoder.grouping import expand_groups, is_first, merge_groups
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.engine.vision.merge_state import MergeState
from feathervlm.engine.vision.packed import ARGUMENTS, Packed, Packing, packs
from feathervlm.engine.vision.probe import attention_modules, find_encoder, has_class_token, replaced_attention

PLAIN = {"self", "hidden_states", "attention_mask", "output_attentions", "kwargs"}
"""Names of the arguments of an encoder layer that depend on no places, so that its tokens may be merged."""
NORMS = ("layer_norm2", "layernorm_after", "norm2", "rms_norm2")
"""Names of the norm between attention and MLP."""
MLPS = ("mlp", "ffn")
"""Names of the MLP."""


class EncoderMerge:
    """Merges in a model's vision encoder while it runs inside `active()`.

    Args:
        base: The model without its head.
        merging: The merging to apply.
        refuse: Callback, called with the error if a run of the encoder cannot merge; that run is then not changed.

    Raises:
        Unprunable: If the encoder neither has plain full attention nor packs pictures as Qwen2-VL's does, or its parts
            are not found.
    """

    def __init__(self, base: nn.Module, merging: EncoderMerging, refuse: Callable[[Unprunable], None]) -> None:
        self.merging, self.refuse, self.name = merging, refuse, type(base).__name__
        self.encoder = find_encoder(base)
        attentions = attention_modules(self.encoder)
        paths = [path.rpartition(".")[0] for path in attentions]
        self.layers = [self.encoder.get_submodule(path) for path in paths]
        self.attentions = {id(module): index for index, module in enumerate(attentions.values())}
        self.modules = list(attentions.values())
        self.protected, self.packs = int(has_class_token(self.encoder)), packs(self.encoder)
        if not paths or len({path.rpartition(".")[0] for path in paths}) > 1:
            raise Unprunable(
                f"The vision encoder of {self.name} has {len(paths)} attention layers that can be hooked"
                f"{', not in one sequence' if paths else ''}; choose a method that does not merge inside it."
            )
        self._check_layer(self.layers[0])
        self.runs: list[MergeState] = []
        self._run: MergeState | None = None
        self._packing: Packing | None = None
        self._lock, self._active = threading.RLock(), False

    def _check_layer(self, layer: nn.Module) -> None:
        more = set(inspect.signature(layer.forward).parameters) - PLAIN
        if more - (ARGUMENTS if self.packs else set()):
            raise Unprunable(
                f"The vision encoder of {self.name} packs pictures or gives its layers the places of patches ("
                f"{', '.join(sorted(more))}), which merging would invalidate; choose a method that does not merge "
                "inside it."
            )
        if getattr(getattr(self.encoder, "config", None), "deepstack_visual_indexes", None):
            raise Unprunable(
                f"The vision encoder of {self.name} uses the states of its middle layers, where patches would be "
                "missing; choose a method that does not merge inside it."
            )
        if self.merging.compares == "keys":
            self._middle(layer)

    def _middle(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the norm before the MLP, and the MLP."""
        norm, mlp = (
            next((part for name in names if (part := getattr(layer, name, None)) is not None), None)
            for names in (NORMS, MLPS)
        )
        if norm is None or mlp is None:
            raise Unprunable(
                f"The layers of {self.name}'s vision encoder have no MLP after a norm (looked for "
                f"{', '.join(MLPS)} and {', '.join(NORMS)}); choose a method that does not merge inside it."
            )
        return norm, mlp

    @contextmanager
    def active(self) -> Iterator[None]:
        """Merge inside a `with` block; a block inside another one changes nothing.

        Raises:
            PruningError: If another thread is in such a block.
            Unprunable: If the encoder ran only in part.
        """
        if not self._lock.acquire(blocking=False):
            raise PruningError(
                "A vision encoder that merges runs once at a time, and another thread is in it; use one copy per "
                "thread."
            )
        try:
            with nullcontext() if self._active else self._hooked():
                yield
        finally:
            self._lock.release()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        self.runs, self._active = [], True
        try:
            with ExitStack() as stack:
                for handle in self._hooks():
                    stack.callback(handle.remove)
                if self.merging.compares == "keys" or self.merging.proportional:
                    stack.enter_context(replaced_attention(self.modules, self._attend))
                yield
            if self._run is not None:
                raise Unprunable(
                    f"{self.name} runs only parts of its vision encoder; choose a method that does not merge in it."
                )
        finally:
            self._run, self._packing, self._active = None, None, False

    def representatives(self) -> Tensor | None:
        """Return which patches stand for their group, before the first layer and after every layer.

        Returns:
            float32 (states, images, tokens), packed pictures being one image; None if the encoder has not run, or has
            run on pictures of several sizes.
        """
        kinds = {run.source.shape[1] for run in self.runs}
        if len(kinds) != 1:
            return None
        device = self.runs[0].source.device
        marks = [torch.stack([is_first(s, s.shape[1]).to(device) for s in run.sources]) for run in self.runs]
        return torch.cat(marks, 1).float()

    def _hooks(self) -> Iterator[RemovableHandle]:
        if self.packs:
            yield self.encoder.register_forward_pre_hook(self._pack, with_kwargs=True)
        for index, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
            # Before the hook of transformers, which collects the states.
            yield layer.register_forward_hook(partial(self._leave, index), prepend=True)
            if self.merging.compares == "keys":
                norm, mlp = self._middle(layer)
                yield norm.register_forward_pre_hook(partial(self._between, index))
                yield mlp.register_forward_hook(self._spread)
        yield self.encoder.register_forward_hook(self._finish)

    def _pack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self._packing = Packing(module, len(self.layers), arguments["grid_thw"])

    def _begin(self, hidden: Tensor, others: list[Any]) -> None:
        try:
            packing, masked = self._packing, any(isinstance(other, Tensor) for other in others)
            if packing is None and (hidden.dim() != 3 or masked):
                raise Unprunable(
                    f"The vision encoder of {self.name} packs or masks these pictures, which merging would invalidate; "
                    "choose a method that does not merge inside it."
                )
            if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in self.layers):
                raise Unprunable(
                    "A vision encoder that merges cannot repeat its layers for gradient checkpointing; turn that "
                    "off for it."
                )
            depth = len(self.layers)
            if packing is not None:
                self._run = Packed(self.merging, depth, hidden[None], packing)
            else:
                self._run = MergeState(self.merging, depth, hidden, self.protected)
        except Unprunable as error:
            self._run = None
            self.refuse(error)

    def _check(self, index: int, kwargs: dict[str, Any]) -> MergeState | None:
        """Return the run, or None if a layer gets unexpected arguments before anything has merged."""
        run = self._run
        try:
            if run is not None:
                run.check(index, kwargs)
        except Unprunable as error:
            if run is not None and run.merged:
                raise
            self._run = None
            self.refuse(error)
        return self._run

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if index == 0:
            self._begin(hidden, [*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states")])
        run = self._check(index, kwargs)
        if run is None:
            return None
        if self.merging.compares == "states" and run.merges(index):
            rows = run.rows(hidden)
            with torch.no_grad():
                place, count = run.find(index, rows)
            hidden = run.back(run.merge(rows, place, count))
        kwargs = run.enter(index, kwargs)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _attend(
        self, usual: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kw: Any
    ) -> Any:
        run = self._run
        if run is not None:
            if self.merging.compares == "keys" and run.merges(self.attentions[id(module)]):
                run.compared.append(key.detach().float().mean(1))
            if self.merging.proportional and run.merged:
                weights = run.weights(key.shape[2]).to(query)
                attention_mask = weights[:, None, None].expand(-1, -1, query.shape[2], -1)
            run.seen += key.shape[2]  # of packed pictures the segments come one by one
        return usual(module, query, key, value, attention_mask, **kw)

    def _between(self, index: int, module: nn.Module, args: tuple[Any, ...]) -> Any:
        run = self._run
        if run is None or not run.compared:
            return None
        with torch.no_grad():
            run.place = run.find(index, torch.cat(run.compared, 1))
        run.compared = []
        return (run.back(merge_groups(run.rows(args[0]), *run.place, run.sizes)),)

    def _spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self._run
        return None if run is None or run.place is None else run.back(expand_groups(run.rows(output), run.place[0]))

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = self._run
        if run is None:
            return None
        rows = run.rows(output[0] if isinstance(output, tuple) else output)
        if run.place is not None:
            rows = run.merge(rows, *run.place)
            run.place = None
        run.sources.append(run.source)
        if index == len(self.layers) - 1 and run.merged:
            rows = expand_groups(rows, run.source)
        hidden = run.back(rows)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _finish(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run, self._run, self._packing = self._run, None, None
        if run is None:
            return
        states = getattr(output, "hidden_states", None)
        if len(run.sources) != len(self.layers) + 1 or (states is not None and len(states) != len(run.sources)):
            raise Unprunable(
                f"The vision encoder of {self.name} leaves out layers, or the states of some; choose a method that "
                "does not merge inside it."
            )
        if states is not None:
            output.hidden_states = tuple(
                None if state is None else self._whole(run, state, source)
                for state, source in zip(states, run.sources, strict=True)
            )
        self.runs.append(run)

    def _whole(self, run: MergeState, state: Tensor, source: Tensor) -> Tensor:
        """Return a state with a row for every original patch."""
        rows = run.rows(state)
        return run.back(expand_groups(rows, source.to(rows.device))) if rows.shape[1] < source.shape[1] else state
