"""Measures how much of a target question-blind choices of visual tokens keep.

The target is that of a `locate` question, so any thing of the scene. Tokens are chosen before the language model from
the picture alone: by its features, by the attention inside the vision encoder, or by their place. Where what may be
asked about covers several times the budget, no such choice can keep most targets.

Example: python scripts/blind_choices.py --weights runs/models/seed-0 --n 20 --out /tmp/blind.json
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `training`, which holds the scenes for now

import feathervlm
from embedded_quality import folder_of, sha256_of
from feathervlm import Grid, Random, Schedule, Stage, Top
from feathervlm.core import Criterion, MaxMin, Selector, VisionAttention
from feathervlm.core.candidates import Candidates
from feathervlm.core.signals import Features, Signal
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt, prepare
from feathervlm.study.aggregates import target_cells
from feathervlm.utils import files
from feathervlm.utils.provenance import provenance
from training.world.scenes import SIDE
from training.world.tasks import HELD_OUT, sample


class FeatureNorm(Criterion):
    """Scores a token by the length of its feature vector, which encoders use to mark tokens (arXiv 2309.16588)."""

    def signals(self) -> tuple[Signal, ...]:
        return (Features("vision"),)

    def score(self, tokens: Candidates) -> Tensor:
        return tokens.signals.read(Features("vision")).norm(dim=-1)


BATCH = 20
BUDGETS = (1 / 3, 2 / 9, 1 / 9)
CRITERIA: dict[str, Criterion] = {
    "attention received, last layer": VisionAttention(-1, "received"),
    "attention received, last but one": VisionAttention(-2, "received"),
    "feature norm": FeatureNorm(),
}


def choices() -> Iterator[tuple[str, float, Selector]]:
    """Yield the name, the budget and the selector of every choice."""
    for budget in BUDGETS:
        yield "random", budget, Random(budget)
        yield "DivPrune", budget, MaxMin(budget)
        for name, criterion in CRITERIA.items():
            yield name, budget, Top(criterion, budget)
    for stride in (2, 3):
        yield f"grid of stride {stride}", 1 / stride**2, Grid(stride)


def measure(model: Any, processor: Any, selector: Selector, n: int, seed: int) -> dict[str, float]:
    """Return shares of the target's cells and of targets, averaged over questions.

    Returns:
        "kept": Share of the tokens that are kept. "share": Mean share of the target's cells among them. "half", "one":
        Share of the targets of which at least half of the cells, or one, are kept.
    """
    found: dict[str, list[float]] = {"kept": [], "share": [], "half": [], "one": []}
    for start in range(0, n, BATCH):
        pairs = [sample("locate", seed, index) for index in range(start, min(start + BATCH, n))]
        inputs = prepare(processor, [Prompt(question.text, (scene.image,)) for scene, question in pairs])
        with feathervlm.prune(model, Schedule(Stage(0, selector))) as pruning, torch.inference_mode():
            model(**inputs)
        for number, (_, question) in enumerate(pairs):
            assert question.box is not None, "localization asks for boxes"
            grid = pruning.report.grid(batch=number)
            cells = target_cells([side / SIDE for side in question.box], tuple(grid.shape)).ravel()
            kept = grid.numpy().ravel()
            share = float(kept[cells].mean())
            for key, value in (("kept", kept.mean()), ("share", share), ("half", share >= 0.5), ("one", share > 0)):
                found[key].append(float(value))
    return {key: round(float(np.mean(values)), 4) for key, values in found.items()}


def main() -> None:
    """Read the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=400, help="questions (default: 400)")
    parser.add_argument("--seed", type=int, default=HELD_OUT, help=f"seed of the questions (default: {HELD_OUT})")
    parser.add_argument("--weights", required=True, help="model directory")
    default = Path("results/embedded/blind.json")
    parser.add_argument("--out", type=Path, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    files.make_directory(arguments.out.parent, "--out")
    loaded = load(ModelSpec(str(folder_of(arguments.weights)), attention="eager"))
    rows = [
        {"choice": name, "budget": round(budget, 4)}
        | measure(loaded.model, loaded.processor, selector, arguments.n, arguments.seed)
        for name, budget, selector in track(list(choices()), "choices")
    ]
    source = {**provenance(), "weights_sha256": sha256_of(arguments.weights)}
    files.write_json(arguments.out, {"rows": rows, "provenance": source, "n": arguments.n, "seed": arguments.seed})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
