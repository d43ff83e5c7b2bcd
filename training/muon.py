"""Muon: momentum steps whose matrices are made orthogonal first (Keller Jordan's optimizer of 2024).

It computes what `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`, but for all matrices of one shape at
once and in their own precision. Torch's implementation goes matrix by matrix in bfloat16, which on a CPU without
bfloat16 instructions takes longer than the rest of a training step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, which brings singular values to between about 0.7 and 1.2."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; steps are as long as AdamW's (RMS 0.2 times the rate)."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every matrix that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix.grad)
                mean = state["momentum"].lerp_(matrix.grad, 1 - momentum)
                ahead = matrix.grad.lerp(mean, momentum)
                # A tall matrix is replaced by its transposed view, so that an update in place changes it.
                pair = (matrix.T, ahead.T) if matrix.shape[0] > matrix.shape[1] else (matrix, ahead)
                alike.setdefault(tuple(pair[0].shape), []).append(pair)
            for (_, long), pairs in alike.items():
                moves = orthogonal(torch.stack([ahead for _, ahead in pairs]))
                for (matrix, _), move in zip(pairs, moves, strict=True):
                    matrix.mul_(1 - rate * group["weight_decay"]).sub_(move, alpha=rate * 0.2 * long**0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (count, short, long) with equal singular vectors and singular values near 1, by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    now = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = now @ now.mT
        now = torch.baddbmm(now, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), now, beta=a)
    return now
