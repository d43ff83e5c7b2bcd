"""A scoring pass: the tokens that another schedule keeps on the same input, as a signal and as a selector."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Signal


@dataclass(frozen=True)
class Survivors(Signal):
    """The tokens that are left after `schedule` has run on the same input: (batch, visual) bool.

    Raises:
        PruningError: if it merges in the vision encoder, which runs once and before it.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        if self.schedule.encoder is not None:
            raise PruningError("A scoring pass comes behind the vision encoder, so its schedule can have no tower.")

    @property
    def compares_pairs(self) -> bool:
        return False

    def inner(self) -> Iterator[Signal]:
        yield from self.schedule.signals()


@dataclass(frozen=True)
class SurvivorsOf(Selector):
    """Keep what is left after another schedule has run on the same input (scored in a pass of its own)."""

    signal: Survivors

    def __post_init__(self) -> None:
        if not isinstance(self.signal, Survivors):
            raise PruningError(f"LeftBy takes Survivors(schedule), not {self.signal!r}.")

    def signals(self) -> Iterator[Signal]:
        """The survivors."""
        yield self.signal

    def select(self, tokens: Candidates) -> Tensor:
        """The survivors that are still there."""
        return tokens.signals.read(self.signal) & tokens.present

    def expected(self, image: ImageTokens) -> float:
        """What the other schedule leaves."""
        for stage in self.signal.schedule.stages:
            image = ImageTokens(image.picture, stage.select.expected(image))
        return image.current


def scoring_passes(stage: Stage) -> list[Survivors]:
    """Return the signals of a stage that need a scoring pass."""
    return [signal for signal in stage.signals() if isinstance(signal, Survivors)]
