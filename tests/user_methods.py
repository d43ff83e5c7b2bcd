"""The example of docs/add-a-method.md as a file, and the registry of methods as it was before."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feathervlm.methods import base

GUIDE = Path(__file__).parents[1] / "docs/add-a-method.md"
EXAMPLE = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]


@contextmanager
def unchanged_registry() -> Iterator[None]:
    """Forget what is loaded in the block."""
    before, modules, listed = dict(base.REGISTRY), set(sys.modules), os.environ.pop(base.LOADED, None)
    try:
        yield
    finally:
        base.REGISTRY.clear()
        base.REGISTRY.update(before)
        for name in set(sys.modules) - modules:
            # A file of methods is executed again only if its module is forgotten.
            if name.startswith("feathervlm_"):
                del sys.modules[name]
        os.environ.pop(base.LOADED, None)
        if listed is not None:
            os.environ[base.LOADED] = listed
