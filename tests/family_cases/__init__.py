"""A tiny random model of every family. A new family adds one row to a `FAMILY_CASES` list here."""

import importlib
import pkgutil

from family_cases.unmergeable_encoders import refuses_encoder_merging

FAMILY_CASES = {}
for info in pkgutil.iter_modules(__path__, f"{__name__}."):
    for case in getattr(importlib.import_module(info.name), "FAMILY_CASES", ()):
        FAMILY_CASES[case.name] = case
for case in FAMILY_CASES.values():
    case.refuses = {**case.refuses, **refuses_encoder_merging(case.name)}
