"""Where measured numbers come from: the command, the code, the machine. Knows nothing of what was measured."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

COMMAND = "feathervlm"


def provenance() -> dict[str, Any]:
    """The command, the code and the machine."""
    words = [COMMAND] if Path(sys.argv[0]).name == COMMAND else ["python", sys.argv[0]]
    return {
        "command": shlex.join([*words, *sys.argv[1:]]),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("feathervlm", "torch", "transformers")},
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of this code, and whether the package was changed since; None outside its own repository."""
    here = Path(__file__).parents[1]
    if not _git("-C", str(here), "ls-files", "--", __file__):
        return None  # installed: a repository around it is somebody else's
    changed = _git("-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", ".")
    return _git("-C", str(here), "rev-parse", "HEAD") + (" with changes" if changed else "")


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
