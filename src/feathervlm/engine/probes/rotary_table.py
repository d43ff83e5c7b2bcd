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
        tables, view = arguments.get("position_embeddings"), forward.rows.view()
        if isinstance(tables, tuple):
            tables = tuple(map(forward.turns.whole_rows, tables))
        elif isinstance(tables, Tensor):
            tables = forward.turns.whole_rows(tables)
        table = rotary_rows(forward.decoder, self.at, tables, self.signal.of, forward.text.start(forward.call))
        return gather_rows(table, view.table_rows.gather(1, view.visual), -2)
