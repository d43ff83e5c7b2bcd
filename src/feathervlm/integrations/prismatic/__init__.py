"""Prismatic checkpoints (TRI-ML/prismatic-vlms, arXiv 2402.07865), the paper's own models, as stock LLaVA directories.

`convert` is all that others need: it reads a run's folder and writes a model directory that `from_pretrained` takes.
"""

from feathervlm.integrations.prismatic.conversion import Converted, Sources, convert

__all__ = ["Converted", "Sources", "convert"]
