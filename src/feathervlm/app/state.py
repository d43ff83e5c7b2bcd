"""What is on the screen, as one value that a link holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode

from feathervlm.core.errors import PruningError
from feathervlm.embedded.assets import METHODS, SHIPPED

COLUMNS = 4
"""Largest number of methods side by side."""
QUESTION = 2000
"""Largest number of characters of a question."""
TOKENS, ROUNDS = 1024, 9
"""Largest length of an answer, and largest number of timed runs."""
TABS = ("compare", "sweep")


@dataclass(frozen=True)
class PageState:
    """The choices of a visitor.

    Args:
        model: "embedded", a directory, or an id on the hub.
        picture: Key of the picture in a `PictureStore`; empty for none.
        question: What is asked about it.
        methods: Specs of the methods side by side.
        sweep: Spec of the method whose budget is swept.
        layer: Layer whose tokens are shown.
        tokens: Maximum length of an answer in tokens; 0 for that of the model.
        rounds: Number of timed runs of each kind; 0 leaves them out.
        maps: Whether score maps are computed.
        tab: The tab in front.
    """

    model: str = SHIPPED
    picture: str = ""
    question: str = ""
    methods: tuple[str, ...] = METHODS
    sweep: str = METHODS[1]
    layer: int = 0
    tokens: int = 0
    rounds: int = 3
    maps: bool = True
    tab: str = TABS[0]

    def link(self) -> str:
        """Return the query part of an address, which `from_link` reads."""
        parts = [("model", self.model), ("picture", self.picture), ("question", self.question)]
        parts += [("method", spec) for spec in self.methods]
        parts += [("sweep", self.sweep)] + [(name, str(getattr(self, name))) for name in ("layer", "tokens", "rounds")]
        return "?" + urlencode([*parts, ("maps", "yes" if self.maps else "no"), ("tab", self.tab)])

    @classmethod
    def from_link(cls, parameters: Iterable[tuple[str, str]]) -> Self | None:
        """Read the parameters of an address; names that are not of a state, such as those of other tools, are skipped.

        Returns:
            The state; None if the address holds none.

        Raises:
            PruningError: A value is not one that a link of this page has.
        """
        values: dict[str, str] = {}
        methods = []
        for name, value in parameters:
            if name == "method":
                methods.append(value)
            else:
                values[name] = value
        if not methods and not {"picture", "question"} & set(values):
            return None
        default = cls()
        return cls(
            model=values.get("model", default.model),
            picture=values.get("picture", ""),
            question=_at_most(values.get("question", ""), QUESTION, "question"),
            methods=check_methods(methods),
            sweep=values.get("sweep", default.sweep),
            layer=_number(values, "layer", default.layer, 999),
            tokens=_number(values, "tokens", default.tokens, TOKENS),
            rounds=_number(values, "rounds", default.rounds, ROUNDS),
            maps=_one_of(values, "maps", ("yes", "no")) == "yes",
            tab=_one_of(values, "tab", TABS),
        )


def check_methods(specs: Iterable[str]) -> tuple[str, ...]:
    """Return the specs, each once, without empty ones.

    Raises:
        PruningError: There are more than fit side by side.
    """
    methods = tuple(dict.fromkeys(spec.strip() for spec in specs if spec.strip()))
    if len(methods) > COLUMNS:
        raise PruningError(f"{len(methods)} methods do not fit side by side; choose {COLUMNS} or fewer.")
    return methods


def check_question(text: str) -> str:
    """Return a question without white space around it.

    Raises:
        PruningError: It is empty or too long.
    """
    text = text.strip()
    if not text:
        raise PruningError("There is no question; write one about the picture.")
    return _at_most(text, QUESTION, "question")


def _at_most(text: str, length: int, name: str) -> str:
    if len(text) > length:
        raise PruningError(f"The {name} has {len(text)} characters, and {length} is the limit; write a shorter one.")
    return text


def _number(values: dict[str, str], name: str, default: int, largest: int) -> int:
    text = values.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text) > largest:
        raise PruningError(f"The link has {name}={text[:40]!r}, which is not a number from 0 to {largest}; correct it.")
    return int(text)


def _one_of(values: dict[str, str], name: str, options: tuple[str, ...]) -> str:
    value = values.get(name, options[0])
    if value not in options:
        raise PruningError(f"The link has {name}={value[:40]!r}, which is not one of {', '.join(options)}; correct it.")
    return value
