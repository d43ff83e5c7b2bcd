"""The two exceptions of the library; every message names the offending value and the remedy."""


class PruningError(ValueError):
    """A request that is wrong for every model: an unknown method, a bad parameter, a layout that does not fit."""


class Unprunable(PruningError):  # noqa: N818 - reads well in `except Unprunable`
    """A valid request that this model or this input cannot serve; `strict=False` turns it into a warning."""


class UnprunedWarning(UserWarning):
    """A model or an input that cannot be pruned runs unpruned, because of `strict=False`."""


class PlacementWarning(UserWarning):
    """An overlay may paint the wrong part of a picture because the processor that prepared it is not known."""
