"""The model that answers on a page: loaded when it is first needed, and one at a time."""

from dataclasses import replace

from feathervlm.core.errors import PruningError
from feathervlm.engine.decoder import DecoderView
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.utils.progress import Say


class ModelCache:
    """Holds one loaded model.

    Args:
        spec: The model of the command line, with device, dtype and attention for every model.
        others: Whether visitors may load other models than that one.
    """

    def __init__(self, spec: ModelSpec, *, others: bool = True) -> None:
        self.spec, self.others = spec, others
        self._name = ""
        self._answerer: Answerer | None = None

    @property
    def depth(self) -> int:
        """Number of layers of the model of the command line."""
        return len(DecoderView(self.get(self.spec.model).model).layers)

    def get(self, name: str, say: Say = lambda now: None) -> Answerer:
        """Return the model, which replaces the one that was loaded before; only one thread may call this at a time.

        Args:
            name: "embedded", a directory, or an id on the hub.
            say: Callback, called with what happens now.

        Raises:
            PruningError: The model cannot be loaded, or may not be.
        """
        name = name.strip() or self.spec.model
        if name != self.spec.model and not self.others:
            raise PruningError(
                f"This page answers with the model {self.spec.model} only; start `feathervlm app --model` with another."
            )
        if self._answerer is None or name != self._name:
            say(f"loading {name}")
            checked = loading.check(replace(self.spec, model=name).as_stored())
            self._name, self._answerer = "", None  # free the memory of the other model before this one is read
            self._answerer, self._name = Answerer(checked.load()), name
        return self._answerer
