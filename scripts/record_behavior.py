"""Record what the library computes, and compare two records: to show that a change of structure changes no answer.

    python scripts/record_behavior.py record DIR
    python scripts/record_behavior.py compare BEFORE AFTER

A record holds, for the embedded model and tiny random models of three families, the kept tokens and the last logits of
every method of the test table, and the JSON documents of the commands. Times, versions and paths are left out of a
comparison.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

FAMILIES = ("llava", "qwen2_5_vl", "internvl")
PICTURE = "picture.png"
QUESTION = "where is the small red circle ?"
VOLATILE = {
    "about", "begun", "bytes", "clock", "command", "commit", "commits", "cores", "description", "environment", "files",
    "gain", "machine", "memory", "out", "path", "peak_bytes", "peak_ratio", "provenance", "python",
    "seconds", "selection_seconds", "settings", "time", "versions",
}  # fmt: skip
"""Keys of measurements and circumstances, which differ between two runs of the same code."""


def commands(out: Path) -> dict[str, list[str]]:
    """The command lines that are recorded, by name."""
    embedded = str(ROOT / "src/feathervlm/embedded/weights")
    ask = ["--model", embedded, "--image", str(out / PICTURE), "--prompt", QUESTION, "--repeats", "1"]
    return {
        "run": ["run", *ask, "--method", "feather", "--json"],
        "run-fastv": ["run", *ask, "--method", "fastv:layer=2", "--json"],
        "demo": ["demo", "--out", str(out / "demo"), "--n", "4", "--json"],
        "methods": ["methods", "--json"],
        "methods-feather": ["methods", "feather", "--json"],
        "models": ["models", "--json"],
        "bench": ["bench", "--quick", "--config", "tiny", "--tokens", "144", "--json"],
        "eval": ["eval", "--limit", "5", "--out", str(out / "eval"), "--json"],
        "diagnose": [
            "diagnose",
            "--method",
            "fastv:layer=2",
            "--limit",
            "4",
            "--seed",
            "0",
            "--out",
            str(out / "diagnosis"),
            "--json",
        ],
        "study": ["study", "--quick", "--n", "10", "--seed", "0", "--out", str(out / "study"), "--json"],
    }


def forwards() -> dict[str, Any]:
    """Kept tokens and last logits of every method on every recorded model."""
    import feathervlm
    from family_cases import FAMILY_CASES
    from feathervlm.core.errors import PruningError
    from method_cases import METHODS

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, processor = feathervlm.embedded.load()
    picture = draw()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    subjects = {"embedded": (model, dict(inputs))}
    for name in FAMILIES:
        case = FAMILY_CASES[name]
        subjects[name] = (case.model(), case.inputs(*case.prompts()))
    found: dict[str, Any] = {}
    for name, (model, inputs) in subjects.items():
        for method, made in {"unpruned": None, **METHODS}.items():
            with torch.inference_mode():
                if made is None:
                    found[f"{name} {method}"] = {"kept": [], "logits": model(**inputs).logits[:, -1].clone()}
                    continue
                try:
                    with feathervlm.prune(model, made) as pruning:
                        logits = model(**inputs).logits[:, -1].clone()
                    kept = [[list(map(int, row)) for row in stage.kept] for stage in pruning.report.stages]
                    found[f"{name} {method}"] = {"kept": kept, "logits": logits}
                except PruningError:
                    found[f"{name} {method}"] = {"kept": "refused", "logits": None}
    return found


def draw() -> Image.Image:
    """A scene like those of the embedded model."""
    picture = Image.new("RGB", (128, 128), (40, 60, 40))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((16, 20, 34, 38), fill=(220, 40, 40))
    pen.rectangle((70, 64, 110, 104), fill=(50, 80, 220))
    pen.polygon([(20, 110), (40, 76), (58, 110)], fill=(230, 210, 40))
    return picture


def record(out: Path) -> None:
    """Write a record."""
    out.mkdir(parents=True, exist_ok=True)
    draw().save(out / PICTURE)
    torch.save(forwards(), out / "forwards.pt")
    for name, words in commands(out).items():
        done = subprocess.run(
            [sys.executable, "-m", "feathervlm", *words], capture_output=True, text=True, check=False, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        if done.returncode:
            print(f"{name} failed: {done.stderr.strip()}", file=sys.stderr)
        (out / f"{name}.json").write_text(done.stdout.replace(str(ROOT), "ROOT"))


def stable(value: Any) -> Any:
    """A JSON document without what differs between two runs of the same code."""
    if isinstance(value, dict):
        return {
            key: stable(part)
            for key, part in value.items()
            if key not in VOLATILE and not key.endswith(("_seconds", "seconds"))
        }
    return [stable(part) for part in value] if isinstance(value, list) else value


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """The places where two documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        missing = [f"{where}/{key}: only in one" for key in keys if (key in before) != (key in after)]
        both = [key for key in keys if key in before and key in after]
        return missing + [line for key in both for line in differences(before[key], after[key], f"{where}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{where}[{number}]")]
    return [] if before == after else [f"{where}: {str(before)[:120]!r} became {str(after)[:120]!r}"]


def compare(before: Path, after: Path) -> int:
    """Print every difference of two records and return how many there are."""
    count = 0
    old, new = (torch.load(path / "forwards.pt", weights_only=True) for path in (before, after))
    for key in dict.fromkeys([*old, *new]):
        if key not in old or key not in new:
            print(f"{key}: only in one")
            count += 1
        elif old[key]["kept"] != new[key]["kept"]:
            print(f"{key}: other tokens are kept")
            count += 1
        elif old[key]["logits"] is not None and not torch.equal(old[key]["logits"], new[key]["logits"]):
            print(f"{key}: logits differ by {(old[key]['logits'] - new[key]['logits']).abs().max():.2e}")
            count += 1
    print(f"{len(old)} forwards compared")
    for path in sorted(before.glob("*.json")):
        one, other = ((folder / path.name).read_text() for folder in (before, after))
        documents = [json.loads(text.replace(str(folder), "OUT")) if text else None
                     for text, folder in ((one, before), (other, after))]  # fmt: skip
        lines = differences(*map(stable, documents))
        print(f"{path.name}: {len(lines)} differences", *lines[:20], sep="\n  ")
        count += len(lines)
    return count


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.folders[0].resolve())
    else:
        raise SystemExit(bool(compare(*(folder.resolve() for folder in arguments.folders))))


if __name__ == "__main__":
    main()
