"""Model families: the only code that knows the geometry of a model, with one file for each family.

A module of this package that defines a `Family` with `model_types` is imported and registered automatically.
"""

import importlib
import pkgutil

from feathervlm.families.registry import FAMILIES, family_of, find, register, rotary_rules

__all__ = ["FAMILIES", "family_of", "find", "rotary_rules"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    register(importlib.import_module(_module.name))
