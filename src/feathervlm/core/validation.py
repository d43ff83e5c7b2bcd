"""Checks of parameters, each with a message that names the value and the remedy."""

from feathervlm.core.errors import PruningError


def choose(value: object, options: tuple[str, ...], name: str) -> None:
    """Raise `PruningError` unless `value` is one of `options`."""
    if value not in options:
        raise PruningError(f"{name}={value!r} is not one of {', '.join(options)}.")


def check_whole(value: object, name: str, least: int = 1) -> None:
    """Raise `PruningError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PruningError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_encoder_layer(layer: object, name: str = "layer") -> None:
    """Raise `PruningError` unless `layer` is a whole number (-1 is the last) or a fraction of the depth in (0, 1)."""
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    if not whole and not (isinstance(layer, float) and 0 < layer < 1):
        raise PruningError(
            f"{name}={layer!r} of a vision encoder must be a whole number, such as -2, or a fraction of its depth."
        )


def check_seed(seed: object) -> None:
    """Raise `PruningError` unless `seed` is one."""
    check_whole(seed, "seed", least=0)
    if isinstance(seed, int) and seed >= 2**63:
        raise PruningError(f"seed={seed} is too large; seeds are below 2**63.")


def check_number(value: object, name: str) -> None:
    """Raise `PruningError` unless `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise PruningError(f"{name}={value!r} must be a finite number.")
