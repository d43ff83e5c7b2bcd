"""What each model family is and takes, read from its class: for `feathervlm models` and the table in the docs."""

from dataclasses import dataclass
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.engine.family import Family
from feathervlm.families.generic import Generic
from feathervlm.families.registry import FAMILIES
from feathervlm.families.unsupported import UNSUPPORTED

ATTENTION = ("sdpa", "eager")
"""Attention implementations that the tests run with every family."""


@dataclass(frozen=True)
class FamilyDescription:
    """A family in words.

    Attributes:
        family: The class of the family.
    """

    family: type[Family]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values, ready for JSON."""
        family = self.family
        return {
            "title": family.title,
            "model_types": list(family.model_types),
            "input": list(family.modalities),
            "geometry": family.geometry,
            "decoder": family.decoder,
            "caches": list(family.caches),
            "attention": list(ATTENTION),
            "box_format": None if family.boxes is None else family.boxes.name,
            "limits": family.limits,
            "about": (family.__doc__ or "").strip(),
        }


def families() -> list[FamilyDescription]:
    """Return every family, sorted by title, with the generic one last."""
    known: list[type[Family]] = sorted(set(FAMILIES.values()), key=lambda family: family.title.lower())
    known.append(Generic)
    return [FamilyDescription(family) for family in known]


def describe(name: str) -> FamilyDescription:
    """Return the family of a `model_type`, or the family with that title.

    Raises:
        PruningError: If the model cannot be pruned, or no family has that name.
    """
    if name in UNSUPPORTED:
        raise PruningError(f"{name} cannot be pruned: {UNSUPPORTED[name]}.")
    for description in families():
        if name in description.family.model_types or name.lower() == description.family.title.lower():
            return description
    similar = [kind for kind in sorted(FAMILIES) if name.lower().replace("-", "_").replace(".", "_") in kind]
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "; `feathervlm models` lists all."
    raise PruningError(f"There is no model family {name!r}{hint}")
