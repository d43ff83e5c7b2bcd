"""Tokens that another schedule keeps, found in a scoring pass before the forward."""

from torch import Tensor

from feathervlm.core.scoring_pass import Survivors
from feathervlm.engine.probes.base import Probe
from feathervlm.engine.probes.registry import measures


@measures(Survivors)
class SurvivorsProbe(Probe[Survivors]):
    """Looks up the result of the scoring pass."""

    def read(self) -> Tensor:
        return self.forward.turns.split(self.forward.survivors[self.signal])
