"""The keys of a decoder layer."""

from torch import Tensor

from feathervlm.core.signals import Keys
from feathervlm.engine.gather import gather_rows
from feathervlm.engine.probes.query_key import QueryKeyProbe
from feathervlm.engine.probes.registry import measures


@measures(Keys)
class KeysProbe(QueryKeyProbe[Keys]):
    """Measures keys, all heads side by side."""

    def read(self) -> Tensor:
        recorder = self.recorder()
        keys = self.compared("key", recorder.found(recorder.keys), recorder.tables)
        rows = self.forward.token_rows(self.tokens, recorder.seen)
        return gather_rows(keys.transpose(1, 2).flatten(2), rows, -2)
