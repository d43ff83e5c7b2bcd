"""How many tokens a `keep` stands for.

`keep` is always what is *kept*: a number in (0, 1] is a fraction, a whole number from 2 on is a count. `keep=1`
therefore means every token. Fractions truncate like the reference code (`int(n * keep)`), and at least one token is
kept.
"""

from typing import NamedTuple

from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Picture, tokens_of


class ImageTokens(NamedTuple):
    """What is known of one image before the model runs.

    Attributes:
        picture: Planes of the image.
        current: Number of its tokens that enter a stage.
    """

    picture: Picture
    current: float

    @property
    def original(self) -> int:
        """Number of tokens of the whole image."""
        return tokens_of(self.picture)


Keep = int | float
"""What is kept: a fraction in (0, 1], or a number of tokens from 2 on."""


def check_keep(keep: Keep, name: str = "keep") -> None:
    """Raise `PruningError` unless `keep` is a fraction in (0, 1] or a whole number of at least 2 tokens."""
    is_number = isinstance(keep, int | float) and not isinstance(keep, bool)
    if not is_number or not (0 < keep <= 1 or (isinstance(keep, int) and keep >= 2)):
        raise PruningError(
            f"{name}={keep!r} is neither a fraction kept in (0, 1] nor a whole number of tokens (2 or more)."
        )


def check_fraction(keep: float, name: str = "keep") -> None:
    """Raise `PruningError` unless `keep` is a fraction in (0, 1]."""
    if not isinstance(keep, int | float) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise PruningError(f"{name}={keep!r} is outside (0, 1]; give the fraction of visual tokens to keep.")


def is_count(keep: Keep) -> bool:
    """Return whether `keep` is a number of tokens and not a fraction."""
    return keep > 1


def part_of(keep: Keep, share: float) -> Keep:
    """Return the `keep` that is a share of another: a count of a count, a fraction of a fraction.

    >>> part_of(0.25, 0.5), part_of(64, 0.5), kept(part_of(5, 0.2), 729)
    (0.125, 32, 1)
    """
    if not is_count(keep):
        return keep * share
    count = int(keep * share)
    return count if count >= 2 else 1e-9  # "1" means every token; this keeps the one token that is always kept


def kept(keep: Keep, tokens: int) -> int:
    """Return the number of tokens kept of `tokens`, which may be zero.

    >>> kept(0.3, 729), kept(196, 729), kept(0.001, 729), kept(0.5, 0)
    (218, 196, 1, 0)
    """
    count = int(keep) if is_count(keep) else int(tokens * keep)
    return min(max(count, 1), tokens)


def kept_tensor(keep: Keep, tokens: Tensor) -> Tensor:
    """Compute `kept` for a tensor of counts, elementwise and without a device sync.

    Python computes `int(n * keep)` in float64, and so does this function, so that both agree to the last token. MPS has
    no float64; there the product is computed on the CPU.
    """
    counts = tokens.new_full(tokens.shape, int(keep)) if is_count(keep) else truncated(keep, tokens)
    return counts.clamp(min=1).minimum(tokens)


def truncated(share: float, tokens: Tensor) -> Tensor:
    """Compute `int(n * share)` for a tensor of counts, long."""
    if tokens.device.type == "mps":
        return (tokens.cpu().double() * share).long().to(tokens.device)
    return (tokens.double() * share).long()
