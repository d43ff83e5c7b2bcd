"""Merging patches inside the vision encoder while it runs, so that its later layers see fewer.

Between the attention and the MLP of a layer a hook cannot shorten what is added to both. So the norm in between gets
the merged states, the MLP runs on them, what it gives out is unfolded, and the sum is merged behind the layer: the mean
of a group plus what all of it got alike is exactly the merged state plus that. Behind the last layer, and in every
layer's states that are handed on, each patch gets a copy of its group. Knows no decoder and no method.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.folding import firsts, fold, folded_sizes, unfold
from feathervlm.core.tower import Tower
from feathervlm.engine.vision import attention_modules, find_encoder, has_class_token, lent

PLAIN = {"self", "hidden_states", "attention_mask", "output_attentions", "kwargs"}
"""Arguments of an encoder layer that knows of no places, so that its tokens may be merged."""
NORMS = ("layer_norm2", "layernorm_after")
"""Names of the norm between attention and MLP."""


@dataclass(eq=False)
class Run:
    """One run of the encoder.

    Attributes:
        plan: patches that are left behind a merge, by layer.
        source: long (images, tokens), which of the tokens now there each of the first has gone into.
        sizes: float32 (images, tokens now there), how many of the first each stands for.
        entered: tokens that entered each layer.
        sources: `source` as the first layer began and behind every layer.
        compared: keys of the layer under way, if it merges.
        place: where the tokens of the layer under way go, if it merges.
    """

    plan: dict[int, int]
    source: Tensor
    sizes: Tensor
    entered: list[int] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    compared: Tensor | None = None
    place: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether some token stands for several."""
        return self.sizes.shape[1] < self.source.shape[1]

    def fold(self, states: Tensor, place: Tensor, count: int) -> Tensor:
        """Merge, for good: (images, count, dim)."""
        folded = fold(states, place, count, self.sizes)
        self.sizes, self.source = folded_sizes(self.sizes, place, count), place.gather(1, self.source)
        return folded


class EncoderMerge:
    """Merges in a model's vision encoder whenever it runs.

    Args:
        base: the model without its head.
        tower: what to merge.
        refuse: told why, if a run of the encoder cannot merge; that run is then left alone.

    Raises:
        Unprunable: if the encoder is not one of plain full attention, or its parts are not found.
    """

    def __init__(self, base: nn.Module, tower: Tower, refuse: Callable[[Unprunable], None]) -> None:
        self.tower, self.refuse, self.name = tower, refuse, type(base).__name__
        self.encoder = find_encoder(base)
        attentions = attention_modules(self.encoder)
        paths = [path.rpartition(".")[0] for path in attentions]
        self.layers = [self.encoder.get_submodule(path) for path in paths]
        self.attentions = {id(module): index for index, module in enumerate(attentions.values())}
        self.modules = list(attentions.values())
        self.protected = int(has_class_token(self.encoder))
        if not paths or len({path.rpartition(".")[0] for path in paths}) > 1:
            raise Unprunable(
                f"The vision encoder of {self.name} has {len(paths)} attention layers that can be looked at"
                f"{', not in one line' if paths else ''}; choose a method that does not merge inside it."
            )
        self._check_layer(self.layers[0])
        self.runs: list[Run] = []
        self._run: Run | None = None
        self._lock, self._active = threading.RLock(), False

    def _check_layer(self, layer: nn.Module) -> None:
        more = set(inspect.signature(layer.forward).parameters) - PLAIN
        if more:
            raise Unprunable(
                f"The vision encoder of {self.name} packs pictures or tells its layers where patches are ("
                f"{', '.join(sorted(more))}), which merging would upset; choose a method that does not merge inside it."
            )
        if getattr(getattr(self.encoder, "config", None), "deepstack_visual_indexes", None):
            raise Unprunable(
                f"The vision encoder of {self.name} uses the states of its middle layers by itself, where patches "
                "would be missing; choose a method that does not merge inside it."
            )
        if self.tower.compares == "keys":
            self._middle(layer)

    def _middle(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The norm in front of the MLP, and the MLP."""
        norm = next((found for name in NORMS if (found := getattr(layer, name, None)) is not None), None)
        mlp = getattr(layer, "mlp", None)
        if norm is None or mlp is None:
            raise Unprunable(
                f"The layers of {self.name}'s vision encoder have no MLP behind a norm (looked for .mlp and "
                f"{', '.join(NORMS)}); choose a method that does not merge inside it."
            )
        return norm, mlp

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Merge while this lasts. Inside another one nothing more happens: the encoder is merging already.

        Raises:
            PruningError: if another thread is in one.
            Unprunable: if the encoder did not run as a whole.
        """
        if not self._lock.acquire(blocking=False):
            raise PruningError(
                "A vision encoder that merges runs once at a time, and another thread is in it; use a copy for each."
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
                if self.tower.compares == "keys" or self.tower.proportional:
                    stack.enter_context(lent(self.modules, self._attend))
                yield
            if self._run is not None:
                raise Unprunable(f"{self.name} runs parts of its vision encoder by themselves; nothing can be merged.")
        finally:
            self._run, self._active = None, False

    def representatives(self) -> Tensor | None:
        """Which patches stand for their group: float32 (states, images, tokens), the first layer's and those behind
        every layer.

        None if the encoder has not run, or on pictures of several sizes.
        """
        kinds = {run.source.shape[1] for run in self.runs}
        if len(kinds) != 1:
            return None
        marks = [torch.stack([firsts(s, s.shape[1]) for s in run.sources]) for run in self.runs]
        return torch.cat(marks, 1).float()

    def _hooks(self) -> Iterator[RemovableHandle]:
        for index, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
            # Ahead of transformers' own hook, which takes the states down.
            yield layer.register_forward_hook(partial(self._leave, index), prepend=True)
            if self.tower.compares == "keys":
                norm, mlp = self._middle(layer)
                yield norm.register_forward_pre_hook(partial(self._between, index))
                yield mlp.register_forward_hook(self._spread)
        yield self.encoder.register_forward_hook(self._finish)

    def _begin(self, hidden: Tensor, others: list[Any]) -> None:
        try:
            if hidden.dim() != 3 or any(isinstance(other, Tensor) for other in others):
                raise Unprunable(
                    f"The vision encoder of {self.name} packs or masks these pictures, which merging would upset."
                )
            if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in self.layers):
                raise Unprunable("A vision encoder that merges cannot repeat its layers for gradient checkpointing.")
            plan = self.tower.plan(len(self.layers), hidden.shape[1] - self.protected)
        except Unprunable as error:
            self._run = None
            self.refuse(error)
            return
        source = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        self._run = Run(plan, source, torch.ones(hidden.shape[:2], device=hidden.device))

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if index == 0:
            self._begin(hidden, [*args[1:], *(value for name, value in kwargs.items() if name != "hidden_states")])
        run = self._run
        if run is None:
            return None
        if self.tower.compares == "states" and index in run.plan:
            place, count = self._places(run, index, hidden)
            hidden = run.fold(hidden, place, count)
        run.entered.append(hidden.shape[1])
        if index == 0:
            run.sources.append(run.source)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _places(self, run: Run, index: int, compared: Tensor) -> tuple[Tensor, int]:
        count = run.plan[index]
        with torch.no_grad():
            return self.tower.places(compared, count, self.protected), count + self.protected

    def _attend(
        self, usual: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kw: Any
    ) -> Any:
        run = self._run
        if run is not None:
            if self.tower.compares == "keys" and self.attentions[id(module)] in run.plan:
                run.compared = key.detach().float().mean(1)
            if self.tower.proportional and run.merged:
                attention_mask = run.sizes.log().to(query.dtype)[:, None, None].expand(-1, -1, query.shape[2], -1)
        return usual(module, query, key, value, attention_mask, **kw)

    def _between(self, index: int, module: nn.Module, args: tuple[Any, ...]) -> Any:
        run = self._run
        if run is None or run.compared is None:
            return None
        run.place, count = self._places(run, index, run.compared)
        run.compared = None
        return (fold(args[0], run.place, count, run.sizes),)

    def _spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self._run
        return None if run is None or run.place is None else unfold(output, run.place)

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = self._run
        if run is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        if run.place is not None:
            hidden = run.fold(hidden, run.place, run.plan[index] + self.protected)
            run.place = None
        run.sources.append(run.source)
        if index == len(self.layers) - 1 and run.merged:
            hidden = unfold(hidden, run.source)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _finish(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        states = getattr(output, "hidden_states", None)
        if len(run.sources) != len(self.layers) + 1 or (states is not None and len(states) != len(run.sources)):
            raise Unprunable(
                f"The vision encoder of {self.name} leaves out layers, or the states of some; nothing can be merged "
                "inside it."
            )
        if states is not None:
            tokens = run.source.shape[1]
            output.hidden_states = tuple(
                unfold(state, source) if state is not None and state.shape[1] < tokens else state
                for state, source in zip(states, run.sources, strict=True)
            )
        self.runs.append(run)
