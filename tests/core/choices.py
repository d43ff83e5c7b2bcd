"""What the tests of selectors ask of a choice: which tokens of each sample, and how many of each image."""

import torch
from hypothesis import HealthCheck, settings

from feathervlm.core import LastTokenAttention
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE, NO_ROPE = LastTokenAttention(), LastTokenAttention(rope=False)


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def per_image(tokens, mask):
    for sample, grids in enumerate(tokens.signals.grids):
        for image, grid in enumerate(grids):
            members = (tokens.geometry.image[sample] == image) & tokens.geometry.exists[sample]
            current = int((members & tokens.present[sample]).sum())
            yield ImageTokens(picture_of(grid), float(current)), int((mask[sample] & members).sum())


def per_group(tokens, mask):
    return torch.zeros_like(tokens.current()).scatter_add_(1, tokens.geometry.image, mask.long())


def seeded(seed):
    return torch.Generator().manual_seed(seed)
