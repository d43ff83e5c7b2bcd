"""What a stage selects tokens by, as far as the findings of a diagnosis depend on it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from feathervlm.core.schedule import Stage
from feathervlm.core.scoring_pass import SurvivorsOf
from feathervlm.core.selectors.base import Selector
from feathervlm.core.selectors.basic import Grid


@dataclass(frozen=True)
class StageTraits:
    """What a stage selects tokens by.

    Attributes:
        attention: Attention weights of the language model.
        rope: Attention weights that depend on rotary position embeddings.
        grid: A uniform grid, alone or beside other tokens.
        signals: Any signal of the model; without one the places are fixed by design.
        drops: Whether the other tokens leave for ever, so that no later layer can read them.
    """

    attention: bool
    rope: bool
    grid: bool
    signals: bool
    drops: bool = True

    @classmethod
    def of(cls, stage: Stage) -> "StageTraits":
        """Return the traits of a stage, or those of the schedule whose survivors it keeps."""
        selectors = list(_selectors(stage.select))
        for selector in selectors:
            if isinstance(selector, SurvivorsOf):
                inner = [cls.of(one) for one in selector.signal.schedule]
                found = {name.name: any(getattr(one, name.name) for one in inner) for name in fields(cls)}
                return cls(**{**found, "drops": stage.leave == "drop"})
        signals = list(stage.signals())
        return cls(
            attention=any(signal.attends for signal in signals),
            rope=any(signal.rotated for signal in signals),
            grid=any(isinstance(selector, Grid) for selector in selectors),
            signals=bool(signals),
            drops=stage.leave == "drop",
        )

    @property
    def remedy(self) -> str:
        """What to try where the kept tokens lie in the wrong places, as a sentence."""
        ways = ["score without RoPE (fastv:rope=false, feather)"] if self.rope else []
        ways += [] if self.grid else ["keep a uniform grid beside the best tokens (ensemble, feather)"]
        ways += ["prune at a later layer, whose scores are better"] if self.attention else []
        sentence = ", or ".join(ways or ["keep more tokens"])
        return f"{sentence[0].upper()}{sentence[1:]}."


def _selectors(selector: Selector) -> Iterator[Selector]:
    yield selector
    for parameter in fields(selector):  # type: ignore[arg-type]  # selectors are dataclasses
        value = getattr(selector, parameter.name)
        if isinstance(value, Selector):
            yield from _selectors(value)
