"""What a pruned model keeps for the length of one forward, and what each thread keeps between them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decode import Decode
from feathervlm.engine.prefill import Prefill


@dataclass(eq=False)
class ForwardState:
    """The state of one forward, made before it and dropped after it.

    Attributes:
        hooks: Hooks on decoder layers; None if the forward needs none.
        call: The call, if it is to be pruned.
        repeated: Whether it repeats the selection of an earlier forward.
        source: Tensors that its images come in, if no cache remembers the selection; None otherwise.
        refused: Whether something in the forward was refused, so that the report gives a reason.
    """

    hooks: Prefill | Decode | None = None
    call: ModelCall | None = None
    repeated: bool = False
    source: tuple[Tensor, ...] | None = None
    refused: bool = False

    def remove_hooks(self) -> None:
        """Remove the hooks from the decoder layers."""
        if self.hooks is not None:
            self.hooks.remove()


class ThreadState(threading.local):
    """What one thread tells the hooks of a pruned model.

    Attributes:
        head_arguments: `logits_to_keep` and `labels` of the full model, whose base model is about to run.
        outer_arguments: All arguments of the full model, by name, while its base model is about to run.
        disabled: Number of blocks without pruning that the thread is in.
        generating: Number of calls of `generate` that the thread is in.
        reported: Whether a pass with the images of this `generate` has been reported.
        dropped: Tokens that the last forward dropped, bool (batch, sequence); None if it was not pruned.
    """

    head_arguments: tuple[Any, Any] = (0, None)
    outer_arguments: dict[str, Any] | None = None
    disabled = 0
    generating = 0
    reported = False
    dropped: Tensor | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Whatever hook or wrapper a copy of the model meets first, it would share its state with the original.
        raise PruningError("A model cannot be copied or pickled while it is being pruned; do it before or afterwards.")

    @contextmanager
    def disabled_block(self) -> Iterator[None]:
        """Count a block without pruning."""
        self.disabled += 1
        try:
            yield
        finally:
            self.disabled -= 1

    @contextmanager
    def generate_block(self) -> Iterator[None]:
        """Count a call of `generate`."""
        self.generating += 1
        try:
            yield
        finally:
            self.generating -= 1
            self.reported = self.reported and self.generating > 0
