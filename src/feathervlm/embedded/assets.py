"""Names and paths of the embedded model."""

from pathlib import Path

SHIPPED = "embedded"
"""Name of the shipped model on the command line and in results."""
WEIGHTS = Path(__file__).parent / "weights"
"""A model directory like any other: `from_pretrained` and `--model` take it."""
METHODS = ("fastv:layer=2", "feather:layers=4+9")
"""The methods that commands compare on the shipped model by default.

The second stage of FEATHER is at layer 9 of 16, because the scores before layer 8, its default, do not find the target
in this model (docs/results/study.md). The layers were chosen on other questions than those that demo and eval ask.
"""
ANYWHERE = ("fastv", "feather")
"""The methods that commands compare on any other model."""


def default_methods(model: str | None) -> tuple[str, str]:
    """Return FastV and FEATHER as specs, with the layers that suit the shipped model."""
    return METHODS if model == SHIPPED else ANYWHERE
