"""Muon makes steps orthogonal, whatever the shape, and agrees with a plain implementation matrix by matrix."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal

SHAPES = [(6, 6), (6, 6), (4, 9), (9, 4)]


def plain(weight, gradients, rate, decay, momentum=0.95):
    """One matrix, one step after another, in float64, the orthogonal factor by singular values."""
    weight, mean = weight.double(), torch.zeros_like(weight).double()
    for gradient in gradients:
        gradient = gradient.double()
        mean = momentum * mean + (1 - momentum) * gradient
        left, values, right = torch.linalg.svd(momentum * mean + (1 - momentum) * gradient, full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        weight = (1 - rate * decay) * weight - rate * 0.2 * max(weight.shape) ** 0.5 * left @ values.diag() @ right
    return weight


def test_steps_are_those_of_the_plain_form():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    gradients = [[torch.randn(shape) for _ in range(4)] for shape in SHAPES]
    expected = [plain(w.detach(), g, 0.1, 0.3) for w, g in zip(weights, gradients, strict=True)]
    optimizer = Muon(weights, 0.1, 0.3)
    for step in range(4):
        for weight, steps in zip(weights, gradients, strict=True):
            weight.grad = steps[step]
        optimizer.step()
    for weight, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.double(), wanted, atol=1e-4, rtol=1e-4)


def test_torch_does_the_same_in_bfloat16():
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("torch before 2.9 has no Muon")
    torch.manual_seed(1)
    one, two = (nn.Parameter(torch.ones(8, 16)) for _ in range(2))
    mine, other = Muon([one], 0.1, 0.2), theirs([two], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        one.grad = torch.randn(8, 16)
        two.grad = one.grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(one, two, atol=0.01, rtol=0.01)


def test_singular_values_come_near_one():
    torch.manual_seed(2)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 20, 30)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_what_has_no_gradient_stays():
    moved, still = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    moved.grad = torch.ones(2, 3)
    Muon([moved, still], 0.1, 0.1).step()
    assert torch.equal(still, torch.ones(2, 3))
    assert not torch.equal(moved, torch.ones(2, 3))
