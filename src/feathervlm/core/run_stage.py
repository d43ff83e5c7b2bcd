"""One stage on the tokens that enter it; no model is needed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.mergers.waiting import wait_groups
from feathervlm.core.schedule import Stage


@dataclass(frozen=True, eq=False)
class StageResult:
    """What a stage decides; every tensor has the shape (batch, visual).

    Attributes:
        kept: bool, the tokens that stay.
        groups: long, the kept token that each token goes into (itself if kept, -1 for none); None if nothing merges.
        scores: float32, the scores of the first criterion that was computed; None if the stage scored nothing.
        means: long, the token in whose row the mean of each token's group runs while it waits (itself if kept, -1 for
            none); None if no means run.
    """

    kept: Tensor
    groups: Tensor | None
    scores: Tensor | None
    means: Tensor | None = None


@torch.no_grad()
def run_stage(stage: Stage, candidates: Candidates, kept: Tensor | None = None) -> StageResult:
    """Select the tokens that stay, and say where a merging stage puts the others.

    Args:
        stage: The stage.
        candidates: The tokens that enter it.
        kept: bool tensor of shape (batch, visual), a selection that replaces the one of the stage's selector.
    """
    chosen = stage.select.select(candidates) if kept is None else kept.to(candidates.present.device)
    chosen = chosen & candidates.present
    scores = next(iter(candidates.scores.values()), None)
    groups = None if stage.merge is None else stage.merge.groups(candidates, chosen)
    waits = candidates.present & ~chosen
    means = None if stage.update is None else wait_groups(candidates, waits, stage.groups)
    return StageResult(chosen, groups, scores, means)
