"""Where measured numbers come from: the command, the code, the versions and the machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoints, entry_points, version
from pathlib import Path
from typing import Any

COMMAND = "feathervlm"
PACKAGES = ("feathervlm", "transformers", "torch")


def provenance() -> dict[str, Any]:
    """Return the command, the code and the machine as plain values."""
    import torch

    return {
        "command": command(),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(),
    }


def versions(*more: str) -> dict[str, str]:
    """Return the versions of this package, transformers, torch, `more` packages and Python."""
    return {**{name: version(name) for name in (*PACKAGES, *more)}, "python": platform.python_version()}


def own_version() -> str:
    """Return the version of this package."""
    return version(COMMAND)


def plugins(group: str) -> EntryPoints:
    """Return the entry points that the installed packages declare in a group."""
    return entry_points(group=group)


def command() -> str:
    """Return the command line of this process, `feathervlm ...` or `python SCRIPT ...`."""
    script = Path(sys.argv[0])
    own = script.name == COMMAND or script.parent == Path(__file__).parents[1]  # the second is `python -m feathervlm`
    return shlex.join([*([COMMAND] if own else ["python", sys.argv[0]]), *sys.argv[1:]])


def commit() -> str | None:
    """Return the commit of this code and whether the package has changes, or None outside its own repository."""
    here = Path(__file__).parents[1]
    if not _git("-C", str(here), "ls-files", "--", __file__):
        return None  # an installed package may lie inside a repository of another project
    changed = _git("-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", ".")
    return _git("-C", str(here), "rev-parse", "HEAD") + (" with changes" if changed else "")


def machine() -> str:
    """Return the name of the processor and the number of its cores."""
    return f"{processor()}, {os.cpu_count()} cores"


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return name or platform.machine()


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
