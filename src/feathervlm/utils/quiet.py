"""Silence of transformers and the hub client while models are loaded and asked."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the hub client from writing logs and progress bars; this package reports what matters."""
    library, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    levels, bars = (library.get_verbosity(), hub.level), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if bars:
            library.enable_progress_bar()
