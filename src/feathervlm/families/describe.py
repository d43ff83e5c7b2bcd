"""What each model family is and takes, read off the code: for `feathervlm models` and the table in the docs.

Knows families by their declarations only; nothing is loaded and nothing measured.
"""

from dataclasses import dataclass
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.engine.family import Family
from feathervlm.families import FAMILIES
from feathervlm.families.generic import Generic
from feathervlm.families.unsupported import REFUSED

KERNELS = ("sdpa", "eager")
"""Attention implementations that the tests run on every family."""


@dataclass(frozen=True)
class Described:
    """A family in words."""

    family: type[Family]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        family = self.family
        return {
            "title": family.title,
            "model_types": list(family.model_types),
            "input": list(family.modalities),
            "geometry": family.geometry,
            "decoder": family.decoder,
            "caches": list(family.caches),
            "attention": list(KERNELS),
            "box_format": None if family.boxes is None else family.boxes.name,
            "limits": family.limits,
            "about": (family.__doc__ or "").strip(),
        }


def families() -> list[Described]:
    """Every family, by title, the generic one last."""
    known: list[type[Family]] = sorted(set(FAMILIES.values()), key=lambda family: family.title.lower())
    known.append(Generic)
    return [Described(family) for family in known]


def describe(name: str) -> Described:
    """The family of a `model_type`, or with that title.

    Raises:
        PruningError: if the model is refused, or there is none of that name.
    """
    if name in REFUSED:
        raise PruningError(f"{name} cannot be pruned: {REFUSED[name]}.")
    for described in families():
        if name in described.family.model_types or name.lower() == described.family.title.lower():
            return described
    near = [kind for kind in sorted(FAMILIES) if name.lower().replace("-", "_").replace(".", "_") in kind]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `feathervlm models` lists all."
    raise PruningError(f"There is no model family {name!r}{hint}")
