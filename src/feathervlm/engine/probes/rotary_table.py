"""The row of the rotary tables by which a layer rotates every visual token."""

from torch import Tensor

from feathervlm.core.signals import RotaryTable
from feathervlm.engine.gather import gather_rows
from feathervlm.engine.probes.base import Probe
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.rotary import rotary_rows


@measures(RotaryTable)
class RotaryTableProbe(Probe[RotaryTable]):
    """Measures cosines or sines of the layer that is about to run."""

    def read(self) -> Tensor:
        forward, (_, arguments) = self.forward, self.forward.stage_inputs
        tables, start = arguments.get("position_embeddings"), forward.text.start(forward.call)
        table = rotary_rows(forward.decoder, self.at, tables, self.signal.of, start)
        return gather_rows(forward.rows.tables(table), forward.rows.visual, -2)
