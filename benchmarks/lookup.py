"""From which layer on scores find the target: python benchmarks/lookup.py.

Nothing is pruned. Before every layer the embedded model's last token is asked, as FastV and FEATHER ask it, what it
looks at; of its scores, which sum to 1 over the visual tokens, those of the target's patches are added up.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import feathervlm
from embedded import SHIPPED, folder_of, sha256_of
from feathervlm import LastTokenAttention, Schedule, Stage, Top, loading, terminal
from feathervlm.embedded.scenes import SIDE
from feathervlm.embedded.tasks import LOCALIZATION, sample
from feathervlm.provenance import provenance
from feathervlm.study.results import target_cells

BATCH = 20


def measure(weights: str, n: int, seed: int) -> list[dict[str, float]]:
    """For every layer: the share of the score on the target, with RoPE and without, and that of an even spread."""
    with loading.quiet():
        model, _ = loading.load_model(str(folder_of(weights)), torch.float32, "sdpa")
        processor = loading.load_processor(str(folder_of(weights)))
    depth = model.config.text_config.num_hidden_layers
    pairs = [sample(task, seed, index) for task in LOCALIZATION for index in range(n)]
    sums = {rope: np.zeros(depth) for rope in (True, False)}
    even = 0.0
    for start in track(range(0, len(pairs), BATCH), "questions", -(-len(pairs) // BATCH)):
        part = pairs[start : start + BATCH]
        inputs = loading.prepare_all(processor, [(scene.image, question.text) for scene, question in part])
        for rope, total in sums.items():
            everything = Top(LastTokenAttention(rope=rope), keep=1.0)
            schedule = Schedule(*(Stage(at=layer, select=everything) for layer in range(1, depth)))
            with feathervlm.prune(model, schedule) as pruning, torch.inference_mode():
                model(**inputs)
            for number, (_, question) in enumerate(part):
                assert question.box is not None, "localization asks for boxes"
                share = tuple(side / SIDE for side in question.box)
                cells = torch.tensor(target_cells(share, pruning.report.grid(batch=number).shape).ravel())
                even += float(cells.float().mean()) / 2
                for stage in pruning.report.stages:
                    assert stage.scores is not None, "a criterion scored"
                    total[stage.layer] += float(stage.scores[number][cells].sum())
    return [
        {
            "layer": layer,
            "rope": round(sums[True][layer] / len(pairs), 4),
            "rope_free": round(sums[False][layer] / len(pairs), 4),
            "even": round(even / len(pairs), 4),
        }
        for layer in range(1, depth)
    ]


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions per localization task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default=SHIPPED, help="a model directory; default: the shipped one")
    parser.add_argument("--out", type=Path, default=Path("results/embedded/lookup.json"))
    arguments = parser.parse_args()
    terminal.make_directory(arguments.out.parent, "--out")
    rows = measure(arguments.weights, arguments.n, arguments.seed)
    source = {**provenance(), "weights_sha256": sha256_of(arguments.weights)}
    terminal.write_json(arguments.out, {"rows": rows, "provenance": source, "n": arguments.n, "seed": arguments.seed})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
