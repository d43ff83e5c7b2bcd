"""How good the embedded model is: python scripts/embedded_quality.py.

Asks many held-out questions without pruning, with sizes and counts unseen in training, and with no visual token at all.
Work is shared out over processes of one thread. What pruning costs, `feathervlm study` tells.
"""

import argparse
import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from feathervlm.embedded import benchmark
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.embedded.tasks import TASKS
from feathervlm.evaluation.embedded_result import BenchmarkResult
from feathervlm.inference import loading
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.utils import files
from feathervlm.utils.provenance import provenance

SHIPPED = "embedded"


@dataclass(frozen=True)
class Job:
    """One method on one task; `weights` is a model directory, or SHIPPED."""

    method: str | None
    task: str
    n: int
    seed: int
    unseen: bool
    weights: str
    unpruned: BenchmarkResult | None = None


def do(job: Job) -> BenchmarkResult:
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
        loaded = loading.load(ModelSpec(weights))
        loaded.model.name_or_path = Path(weights).name
        _subjects[weights] = {"model": loaded.model, "processor": loaded.processor}
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
    unpruned: Sequence[BenchmarkResult | None] = (None,) * len(TASKS),
    *,
    unseen: bool = False,
) -> list[BenchmarkResult]:
    """Every task, in order, with a progress bar."""
    n = max(arguments.n // 4, 1) if unseen else arguments.n
    shared = (n, arguments.seed, unseen, arguments.weights)
    jobs = [Job(method, task, *shared, result) for task, result in zip(TASKS, unpruned, strict=True)]
    title = (method or "unpruned") + (", unseen sizes and counts" if unseen else "")
    return list(track(pool.imap(do, jobs), title, len(jobs)))


def folder_of(weights: str) -> Path:
    """The model directory."""
    return WEIGHTS if weights == SHIPPED else Path(weights)


def sha256_of(weights: str) -> str:
    """What tells these weights from others."""
    return hashlib.sha256((folder_of(weights) / "model.safetensors").read_bytes()).hexdigest()


def measure(pool: Pool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Unpruned, text alone, and unseen (a quarter as many questions)."""
    unpruned = ask(pool, arguments)
    return {
        "unpruned": BenchmarkResult.join(unpruned).to_dict(),
        "text_only": BenchmarkResult.join(ask(pool, arguments, "text-only", unpruned)).to_dict(),
        "unseen": BenchmarkResult.join(ask(pool, arguments, unseen=True)).to_dict(),
    }


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="questions per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default=SHIPPED, help="a model directory; default: the shipped one")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results/embedded/quality.json"))
    arguments = parser.parse_args()
    source = {**provenance(), "weights_sha256": sha256_of(arguments.weights), "n": arguments.n, "seed": arguments.seed}
    files.make_directory(arguments.out.parent, "--out")
    with workers(arguments.processes) as pool:
        files.write_json(arguments.out, {**measure(pool, arguments), "provenance": source})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
