"""Prismatic checkpoints (TRI-ML/prismatic-vlms, arXiv 2402.07865), the paper's own models, as stock LLaVA directories.

`convert` reads the directory of a Prismatic run and writes a model directory that `from_pretrained` loads.
"""

from feathervlm.integrations.prismatic.conversion import ConvertedModel, PrismaticFiles, convert

__all__ = ["ConvertedModel", "PrismaticFiles", "convert"]
