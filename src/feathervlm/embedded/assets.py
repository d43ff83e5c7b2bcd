"""Names and paths of the embedded model."""

from pathlib import Path

SHIPPED = "embedded"
"""What results call the model that ships."""


WEIGHTS = Path(__file__).parent / "weights"
"""A model directory like any other: `from_pretrained` and `--model` take it."""
