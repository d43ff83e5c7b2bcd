"""Checks of parameters; every message names the parameter, its value and what is allowed."""

from feathervlm.core.errors import PruningError


def check_choice(value: object, options: tuple[str, ...], name: str) -> None:
    """Raise `PruningError` unless `value` is one of `options`."""
    if value not in options:
        raise PruningError(f"{name}={value!r} is not one of {', '.join(options)}.")


def check_bool(value: object, name: str) -> None:
    """Raise `PruningError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise PruningError(f"{name}={value!r} must be true or false.")


def is_int(value: object, minimum: int = 1) -> bool:
    """Return whether `value` is an integer of at least `minimum`; True and False are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def check_int(value: object, name: str, minimum: int = 1) -> None:
    """Raise `PruningError` unless `value` is an integer of at least `minimum`."""
    if not is_int(value, minimum):
        raise PruningError(f"{name}={value!r} must be a whole number of at least {minimum}.")


def check_number(
    value: object, name: str, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> None:
    """Raise `PruningError` unless `value` is a finite number within the bounds.

    Args:
        value: The value of the parameter.
        name: The name of the parameter.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        above: Number that must be exceeded.

    >>> check_number(1.5, "tau", -1, 1)
    Traceback (most recent call last):
    feathervlm.core.errors.PruningError: tau=1.5 must be a finite number of at least -1 and at most 1.
    """
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("of at least", minimum), ("above", above), ("at most", maximum))
        if bound is not None
    ]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < float("inf")
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
        or (maximum is not None and value > maximum)
    ):
        raise PruningError(f"{name}={value!r} must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}.")


def check_encoder_layer(layer: object, name: str = "layer") -> None:
    """Raise `PruningError` unless `layer` is an integer (-1 is the last layer) or a fraction of the depth in (0, 1)."""
    is_int = isinstance(layer, int) and not isinstance(layer, bool)
    if not is_int and not (isinstance(layer, float) and 0 < layer < 1):
        raise PruningError(
            f"{name}={layer!r} of a vision encoder must be a whole number, such as -2, or a fraction of its depth."
        )


def check_seed(seed: object) -> None:
    """Raise `PruningError` unless `seed` is an integer from 0 to 2**63 - 1."""
    check_int(seed, "seed", minimum=0)
    if isinstance(seed, int) and seed >= 2**63:
        raise PruningError(f"seed={seed} is too large; seeds are below 2**63.")
