"""The signals with one vector for every token, which mergers and selectors compare."""

from feathervlm.core.errors import PruningError
from feathervlm.core.signals.encoder import EncoderKeys
from feathervlm.core.signals.features import Features
from feathervlm.core.signals.layers import Keys

Vectors = Features | EncoderKeys
"""The signals that mergers may compare: one vector for every token."""


def check_vectors(value: object, name: str = "vectors") -> None:
    """Raise `PruningError` unless `value` is a signal with one vector for every token."""
    if not isinstance(value, Features | EncoderKeys):
        raise PruningError(f"{name}={value!r} has no vectors to compare; give Features(...) or EncoderKeys(...).")


def check_keys(value: object, name: str = "keys") -> None:
    """Raise `PruningError` unless `value` names keys of a language model layer."""
    if not isinstance(value, Keys):
        raise PruningError(f"{name}={value!r} must be Keys(...).")
