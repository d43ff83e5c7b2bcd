"""Measures from which layer on attention finds the target, and from which layer on it depends on the question.

Nothing is pruned. Before every layer, the scores that the last token gives to visual tokens are computed as FastV and
FEATHER do it; they sum to 1, and those of the target's patches are added up. Then one word of the question, the size,
the colour or the shape, is exchanged, and the change of the last token's state is measured in every layer.

Example: python scripts/attention_on_target.py --n 5 --out /tmp/lookup.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import feathervlm
from embedded_quality import SHIPPED, folder_of, sha256_of
from feathervlm import LastTokenAttention, Schedule, Stage, Top
from feathervlm.embedded.scenes import COLOURS, SHAPES, SIDE, SIZES
from feathervlm.embedded.tasks import LOCALIZATION, sample
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt, prepare
from feathervlm.study.aggregates import target_cells
from feathervlm.utils import files
from feathervlm.utils.provenance import provenance

BATCH = 20
KINDS = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}


def measure(model: Any, processor: Any, n: int, seed: int) -> list[dict[str, float]]:
    """Return for every layer the share of the scores on the target, with RoPE, without it, and for equal scores."""
    depth = model.config.text_config.num_hidden_layers
    pairs = [sample(task, seed, index) for task in LOCALIZATION for index in range(n)]
    sums = {rope: np.zeros(depth) for rope in (True, False)}
    even = 0.0
    for start in track(range(0, len(pairs), BATCH), "questions", -(-len(pairs) // BATCH)):
        part = pairs[start : start + BATCH]
        inputs = prepare(processor, [Prompt(question.text, (scene.image,)) for scene, question in part])
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


def question_effect(model: Any, processor: Any, n: int, seed: int) -> dict[str, list[float]]:
    """Measure how much the last token's state changes when a word of a `locate` question is exchanged.

    Returns:
        For "size", "colour" and "shape", the mean of |h - h'| / |h| over the questions with such a word, where h is
        the state that enters a layer; one value per layer.
    """
    moved: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for index in track(range(n), "words", n):
        scene, question = sample("locate", seed, index)
        words = question.text.split()
        spoken = {kind: word for kind, values in KINDS.items() for word in values if word in words}
        # Only a size, a colour or a shape that the question contains can be exchanged.
        texts = {kind: exchange(words, word, KINDS[kind]) for kind, word in spoken.items()}
        inputs = prepare(processor, [Prompt(text, (scene.image,)) for text in (question.text, *texts.values())])
        with torch.inference_mode():
            entered = model(**inputs, output_hidden_states=True).hidden_states
        last = torch.stack([state[:, -1] for state in entered[:-1]])
        change = (last - last[:, :1]).norm(dim=-1) / last[:, :1].norm(dim=-1)
        for kind, column in zip(texts, change.T[1:], strict=True):
            moved[kind].append(column)
    return {kind: torch.stack(columns).mean(0).tolist() for kind, columns in moved.items()}


def exchange(words: Sequence[str], word: str, values: Sequence[str]) -> str:
    """Return the question with a word replaced by the next of some values; the first follows the last."""
    other = values[(values.index(word) + 1) % len(values)]
    return " ".join(other if one == word else one for one in words)


def main() -> None:
    """Read the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions per localization task (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default: 0)")
    parser.add_argument("--weights", default=SHIPPED, help="model directory (default: the embedded model)")
    default = Path("results/embedded/lookup.json")
    parser.add_argument("--out", type=Path, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    files.make_directory(arguments.out.parent)
    folder = str(folder_of(arguments.weights))
    loaded = load(ModelSpec(folder))
    rows = measure(loaded.model, loaded.processor, arguments.n, arguments.seed)
    for kind, moved in question_effect(loaded.model, loaded.processor, arguments.n, arguments.seed).items():
        for row in rows:
            # A stage before a layer uses the scores of the layer before it, which come from the state that enters that.
            row[f"heeds_{kind}"] = round(moved[int(row["layer"]) - 1], 4)
    source = {**provenance(), "weights_sha256": sha256_of(arguments.weights)}
    files.write_json(arguments.out, {"rows": rows, "provenance": source, "n": arguments.n, "seed": arguments.seed})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
