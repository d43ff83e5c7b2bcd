"""Measures the embedded model on many held-out questions.

The questions are answered without pruning, without visual tokens, and with sizes and counts not seen in training. Work
is divided among processes of one thread. `feathervlm study` measures what pruning costs.

Example: python scripts/embedded_quality.py --n 20 --out /tmp/quality.json
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
    """One method on one task. `weights` is a model directory, or SHIPPED for the embedded model."""

    method: str | None
    task: str
    n: int
    seed: int
    unseen: bool
    weights: str
    unpruned: BenchmarkResult | None = None


def run_job(job: Job) -> BenchmarkResult:
    """Run a job in a worker process, which keeps its model for later jobs."""
    torch.set_num_threads(1)
    return benchmark(
        job.method,
        job.task,
        job.n,
        job.seed,
        unseen=job.unseen,
        progress=False,
        unpruned=job.unpruned,
        **load(job.weights),
    )


def load(weights: str) -> dict[str, Any]:
    """Return model and processor as arguments of `benchmark`, which needs none for the embedded model."""
    if weights == SHIPPED:
        return {}
    if weights not in _loaded:
        loaded = loading.load(ModelSpec(weights))
        loaded.model.name_or_path = Path(weights).name
        _loaded[weights] = {"model": loaded.model, "processor": loaded.processor}
    return _loaded[weights]


_loaded: dict[str, dict[str, Any]] = {}


@contextmanager
def workers(count: int) -> Iterator[Pool]:
    """Start worker processes with spawn, because a fork after torch has run is not safe."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield pool


def measure_tasks(
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
    return list(track(pool.imap(run_job, jobs), title, len(jobs)))


def folder_of(weights: str) -> Path:
    """Return the model directory."""
    return WEIGHTS if weights == SHIPPED else Path(weights)


def sha256_of(weights: str) -> str:
    """Return the hash that identifies the weights."""
    return hashlib.sha256((folder_of(weights) / "model.safetensors").read_bytes()).hexdigest()


def measure(pool: Pool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the results unpruned, from text alone, and on unseen sizes and counts (a quarter as many questions)."""
    unpruned = measure_tasks(pool, arguments)
    return {
        "unpruned": BenchmarkResult.join(unpruned).to_dict(),
        "text_only": BenchmarkResult.join(measure_tasks(pool, arguments, "text-only", unpruned)).to_dict(),
        "unseen": BenchmarkResult.join(measure_tasks(pool, arguments, unseen=True)).to_dict(),
    }


def main() -> None:
    """Read the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="questions per task (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default: 0)")
    parser.add_argument("--weights", default=SHIPPED, help="model directory (default: the embedded model)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one per core")
    default = Path("results/embedded/quality.json")
    parser.add_argument("--out", type=Path, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    source = {**provenance(), "weights_sha256": sha256_of(arguments.weights), "n": arguments.n, "seed": arguments.seed}
    files.make_directory(arguments.out.parent)
    with workers(arguments.processes) as pool:
        files.write_json(arguments.out, {**measure(pool, arguments), "provenance": source})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
