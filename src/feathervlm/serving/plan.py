"""What an engine with a scheduler of its own has to know of a method before the model runs.

Such an engine reserves memory for every token of a prompt before the vision encoder has run. So tokens can leave only
before the language model, and their number has to follow from the size of the picture.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from feathervlm.core.budget import ImageTokens
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Picture, picture_of, tokens_of
from feathervlm.core.schedule import Schedule, Stage
from feathervlm.core.scoring_pass import scoring_passes
from feathervlm.methods import Method, get

POSITIONS = ("preserve", "renumber")
"""Position policies of a stage that can be served."""
TYPICAL = (1, 24, 24)
"""Grid on which a plan is tried."""


@dataclass(frozen=True)
class ServingPlan:
    """A method with one stage before the language model, which keeps a known number of tokens.

    Args:
        spec: The method, as on the command line.
        depth: Number of layers of the language model.

    Raises:
        PruningError: If there is no such method, or it cannot be served.

    >>> ServingPlan("uniform:layer=0", depth=16).kept((1, 16, 16))
    64
    """

    spec: str
    depth: int

    def __post_init__(self) -> None:
        schedule, name = self.schedule, str(self.method)
        if schedule.encoder is not None:
            raise PruningError(
                f"{name} merges inside the vision encoder, which runs in the serving engine; choose a method without."
            )
        if schedule.at_layers(self.depth) != (0,):
            forms = self._served_forms()
            remedy = f"write {', or '.join(forms)}" if forms else "choose a method such as divprune"
            raise PruningError(
                f"{name} lets tokens leave inside the language model, and served tokens leave before it; {remedy}."
            )
        if self.stage.positions not in POSITIONS:
            raise PruningError(
                f"{name} moves tokens by positions={self.stage.positions}; serve it with positions=preserve."
            )
        self.kept(TYPICAL)

    def _served_forms(self) -> list[str]:
        """Return specs in which the method can be served."""
        method, names = self.method, {field.name for field in fields(self.method)}
        if "fixed" in names:
            method = with_parameter(method, "fixed", True)
        forms = [f"before-llm:method=({method})"]
        if len(self.schedule.stages) == 1 and "layer" in names:
            forms.insert(0, str(with_parameter(method, "layer", 0)))
        return [form for form in forms if self._is_served(form)]

    def _is_served(self, spec: str) -> bool:
        try:
            ServingPlan(spec, self.depth)
        except PruningError:
            return False
        return True

    @cached_property
    def method(self) -> Method:
        """The method that the spec names."""
        return get(self.spec)

    @cached_property
    def schedule(self) -> Schedule:
        """The method's schedule."""
        return self.method.schedule()

    @property
    def stage(self) -> Stage:
        """The one stage."""
        return self.schedule.stages[0]

    @property
    def preserves(self) -> bool:
        """Whether kept tokens have the positions that they have in the unpruned prompt."""
        return self.stage.positions == "preserve"

    @property
    def reads_text(self) -> bool:
        """Whether the choice depends on the text of the prompt.

        What a scoring pass measures in a layer depends on the text before the picture, which its tokens attend to.
        """
        measured = any(True for scoring in scoring_passes(self.stage) for _ in scoring.inner())
        return measured or any(signal.needs_text for signal in self.schedule.signals())

    @property
    def scores(self) -> bool:
        """Whether the choice needs a pass through layers of the language model."""
        return bool(scoring_passes(self.stage))

    def kept(self, picture: Picture | tuple[int, int, int]) -> int:
        """Return the number of tokens that stay of a picture.

        Raises:
            PruningError: If that is not known beforehand, or none stays.
        """
        picture = picture_of(picture)
        size = self.stage.select.size(ImageTokens(picture, float(tokens_of(picture))))
        if size is None:
            raise PruningError(
                f"How many tokens {self.method} keeps depends on the picture, and a server must know it beforehand; "
                "choose a method with a fixed count (feather and ensemble have fixed=true)."
            )
        if size == 0:
            raise PruningError(f"{self.method} keeps no visual token; send the prompt without its picture instead.")
        return size

    def placeholders(self, picture: Picture | tuple[int, int, int]) -> int:
        """Return the number of placeholders from which the positions of a picture's tokens and its text follow."""
        return tokens_of(picture_of(picture)) if self.preserves else self.kept(picture)


def with_parameter(method: Method, name: str, value: Any) -> Method:
    """Return a copy of a method with another value of one parameter."""
    return replace(method, **{name: value})


plan_of = lru_cache(maxsize=256)(ServingPlan)
"""Return the plan of a spec and a depth; a server sees the same few over and over."""
