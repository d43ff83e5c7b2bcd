"""How good the embedded model is, and what pruning costs it: python benchmarks/embedded.py quality | pruning.

`quality` asks many held-out questions without pruning, with sizes and counts unseen in training, and with no visual
token at all. `pruning` runs criteria by depth (about 10, 25 and 50 % of the layers) and whole methods, on the same
questions. Work is shared out over processes of one thread; what is done is written at once, and an interrupted run of
the same command goes on where it stood.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from provenance import provenance, write
from rich.progress import track

from feathervlm import loading
from feathervlm.embedded import benchmark
from feathervlm.embedded.model import WEIGHTS
from feathervlm.embedded.result import Result
from feathervlm.embedded.tasks import TASKS

CRITERIA = ("fastv:{at},keep={keep}", "fastv:{at},keep={keep},rope=false", "ensemble:{at},keep={keep}")
DEPTHS = (0.1, 0.25, 0.5, 0.58)
"""Shares of the depth at which criteria are tried; the last is where the shipped model's scores begin to tell."""
SHIPPED = "embedded"


def methods(depth: int) -> list[str]:
    """Criteria by depth, and whole methods."""
    layers = [max(1, round(depth * share)) for share in DEPTHS]
    _, quarter, _, late = layers
    return [
        *(form.format(at=f"layer={at}", keep=keep) for form in CRITERIA for keep in (0.25, 0.1) for at in layers),
        *(f"uniform:layer={at},stride={stride}" for stride in (2, 3) for at in layers[:3]),
        *(f"random:layer={quarter},keep=0.25,seed={seed}" for seed in range(3)),
        "pyramiddrop",
        "feather",
        f"feather:layers={quarter}+{late}",
        f"feather:layers={quarter + 1}+{late}",
    ]


@dataclass(frozen=True)
class Job:
    """One method on one task; `weights` is a model directory, or SHIPPED."""

    method: str | None
    task: str
    n: int
    seed: int
    unseen: bool
    weights: str
    unpruned: Result | None = None


def do(job: Job) -> Result:
    """Run a job in a process of its own, which keeps its model from job to job."""
    torch.set_num_threads(1)
    return benchmark(
        job.method,
        job.task,
        job.n,
        job.seed,
        unseen=job.unseen,
        progress=False,
        unpruned=job.unpruned,
        **subject(job.weights),
    )


def subject(weights: str) -> dict[str, Any]:
    """The model and processor to pass on; none for the shipped model."""
    if weights == SHIPPED:
        return {}
    if weights not in _subjects:
        with loading.quiet():
            model, _ = loading.load_model(weights, torch.float32, "sdpa")
            model.name_or_path = Path(weights).name
            _subjects[weights] = {"model": model, "processor": loading.load_processor(weights)}
    return _subjects[weights]


_subjects: dict[str, dict[str, Any]] = {}


@contextmanager
def workers(count: int) -> Iterator[Pool]:
    """Fresh processes, since forking after torch has run is not safe."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield pool


def ask(
    pool: Pool,
    arguments: argparse.Namespace,
    method: str | None = None,
    unpruned: Sequence[Result | None] = (None,) * len(TASKS),
    *,
    unseen: bool = False,
) -> list[Result]:
    """Every task, in order, with a progress bar."""
    n = max(arguments.n // 4, 1) if unseen else arguments.n
    shared = (n, arguments.seed, unseen, arguments.weights)
    jobs = [Job(method, task, *shared, result) for task, result in zip(TASKS, unpruned, strict=True)]
    title = (method or "unpruned") + (", unseen sizes and counts" if unseen else "")
    return list(track(pool.imap(do, jobs), title, len(jobs)))


def folder_of(weights: str) -> Path:
    """The model directory."""
    return WEIGHTS if weights == SHIPPED else Path(weights)


def depth(weights: str) -> int:
    """Layers of the decoder."""
    config = json.loads((folder_of(weights) / "config.json").read_text())
    return int(config["text_config"]["num_hidden_layers"])


def quality(pool: Pool, arguments: argparse.Namespace, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Unpruned, unseen (a quarter as many questions), and text alone."""
    unpruned = ask(pool, arguments)
    yield {"unpruned": Result.join(unpruned).to_dict()}
    yield {"text_only": Result.join(ask(pool, arguments, "text-only", unpruned)).to_dict()}
    yield {"unseen": Result.join(ask(pool, arguments, unseen=True)).to_dict()}


def pruning(pool: Pool, arguments: argparse.Namespace, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every method against the unpruned run."""
    unpruned = ask(pool, arguments)
    rows = {row["method"]: row for row in found.get("methods", [])}
    planned = methods(depth(arguments.weights))
    for number, method in enumerate(planned, 1):
        if method not in rows:
            result = Result.join(ask(pool, arguments, method, unpruned))
            rows[method] = result.to_dict()
            place = f"{number} of {len(planned)}"
            print(f"{place}: localization {result.localization}  others {result.others}", flush=True)
        yield {
            "unpruned": Result.join(unpruned).to_dict(),
            "methods": [rows[name] for name in planned if name in rows],
        }


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "pruning"])
    parser.add_argument("--n", type=int, default=None, help="questions per task: 2000 for quality, 150 for pruning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default=SHIPPED, help="a model directory; default: the shipped one")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None, help="default: results/embedded/<what>.json")
    arguments = parser.parse_args()
    arguments.n = arguments.n or {"quality": 2000, "pruning": 150}[arguments.what]
    out = arguments.out or Path("results/embedded") / f"{arguments.what}.json"
    weights = hashlib.sha256((folder_of(arguments.weights) / "model.safetensors").read_bytes()).hexdigest()
    same = {"weights_sha256": weights, "n": arguments.n, "seed": arguments.seed}
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if any(found.get("provenance", {}).get(key) != value for key, value in same.items()):
        found = {}
    source = {**provenance(), **same}
    with workers(arguments.processes) as pool:
        for part in {"quality": quality, "pruning": pruning}[arguments.what](pool, arguments, found):
            found = {**found, **part, "provenance": source}
            write(out, found)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
