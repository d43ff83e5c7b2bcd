"""A tiny random model of every family. A new family adds one row to a `SPECIMENS` list here."""

import importlib
import pkgutil

SPECIMENS = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for specimen in getattr(importlib.import_module(info.name), "SPECIMENS", ()):
        SPECIMENS[specimen.name] = specimen
