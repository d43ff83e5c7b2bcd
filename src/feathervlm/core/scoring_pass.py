"""A scoring pass: the tokens that another schedule keeps on the same input, as a signal and as a selector."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Signal, describe_signals


@dataclass(frozen=True)
class Survivors(Signal):
    """The tokens that remain after `schedule` has run on the same input: (batch, visual) bool.

    Args:
        schedule: The schedule of the scoring pass.

    Raises:
        PruningError: If the schedule merges in the vision encoder, which runs once and before the scoring pass.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        if self.schedule.encoder is not None:
            raise PruningError(
                "A scoring pass runs after the vision encoder, so its schedule cannot merge there; give a schedule "
                "without encoder=."
            )

    @property
    def compares_pairs(self) -> bool:
        return False

    @property
    def needs_text(self) -> bool:
        return any(signal.needs_text for signal in self.inner())

    def inner(self) -> Iterator[Signal]:
        yield from self.schedule.signals()

    def describe(self) -> str:
        needs = dict.fromkeys(describe_signals(stage.signals()) for stage in self.schedule)
        return f"a scoring pass of its own, which needs {'; '.join(needs)}"


@dataclass(frozen=True)
class SurvivorsOf(Selector):
    """Keep the tokens that remain after another schedule has run on the same input, in a scoring pass of its own.

    Args:
        signal: The survivors of that schedule.
    """

    signal: Survivors

    def __post_init__(self) -> None:
        if not isinstance(self.signal, Survivors):
            raise PruningError(f"signal={self.signal!r} must be Survivors(schedule).")

    def signals(self) -> Iterator[Signal]:
        yield self.signal

    def select(self, tokens: Candidates) -> Tensor:
        return tokens.signals.read(self.signal) & tokens.present

    def expected(self, image: ImageTokens) -> float:
        for stage in self.signal.schedule.stages:
            image = ImageTokens(image.picture, stage.select.expected(image))
        return image.current

    def size(self, image: ImageTokens) -> int | None:
        for stage in self.signal.schedule.stages:
            count = stage.select.size(image)
            if count is None:
                return None
            image = ImageTokens(image.picture, float(count))
        return int(image.current)


def scoring_passes(stage: Stage) -> list[Survivors]:
    """Return the signals of a stage that need a scoring pass."""
    return [signal for signal in stage.signals() if isinstance(signal, Survivors)]
