"""A tiny random model of every family. A new family adds one row to a `SPECIMENS` list here."""

import importlib
import pkgutil

from family_cases.towers import unmerged

SPECIMENS = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for specimen in getattr(importlib.import_module(info.name), "SPECIMENS", ()):
        SPECIMENS[specimen.name] = specimen
for specimen in SPECIMENS.values():
    specimen.refuses = {**specimen.refuses, **unmerged(specimen.name)}
