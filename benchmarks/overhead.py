"""What pruning costs and saves on a ~170M-parameter LLaVA with random weights: prefill, selection, decode, memory.

Speed does not depend on the weights. Variants alternate in one process (A B C, A B C, ...), the first round is thrown
away, and processor time of one thread is taken, which other work on the machine disturbs least. The vision encoder is
left out: every variant is given the same projected features.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import feathervlm
from feathervlm import methods

LAYERS, SIDE, TEXT, IMAGE = 24, 24, 59, 31_999
VARIANTS: dict[str, methods.Method | None] = {
    "unpruned": None,
    "keep all": methods.Feather(keep=1.0),
    "fastv:layer=3": methods.FastV(layer=3),
    "feather:layers=8+16": methods.Feather(layers=(8, 16)),
    "feather:layers=8+16,fixed=true": methods.Feather(layers=(8, 16), fixed=True),
    "random:layer=3": methods.RandomKeep(layer=3),
}


def build() -> LlavaForConditionalGeneration:
    """A LLaVA with a 24-layer, 768-wide Llama and 576 visual tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=14 * SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=SIDE**2, tie_word_embeddings=True
    )
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration._from_config(
        config, attn_implementation="sdpa"
    )
    return model.eval()


def prefill(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> DynamicCache:
    """One prompt into a new cache."""
    cache = DynamicCache(config=model.config.get_text_config())
    model(**inputs, past_key_values=cache, logits_to_keep=1)
    return cache


def decode(model: LlavaForConditionalGeneration, cache: DynamicCache, tokens: int) -> None:
    """Some tokens, one by one."""
    token = torch.tensor([[7]])
    for _ in range(tokens):
        model(input_ids=token, past_key_values=cache, logits_to_keep=1)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of `work`, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(rounds: int, tokens: int) -> dict[str, Any]:
    """Alternate all variants and collect their times."""
    model = build()
    prompt = [1, *[IMAGE] * SIDE**2, *range(100, 99 + TEXT)]
    pixels = torch.randn(1, 3, 14 * SIDE, 14 * SIDE)
    encoded = model.base_model.get_image_features(pixel_values=pixels, return_dict=True)
    inputs = {"input_ids": torch.tensor([prompt]), "mm_encoder_outputs": {"image": encoded}}
    found: dict[str, dict[str, Any]] = {name: {"prefill": [], "selection": [], "decode": []} for name in VARIANTS}
    for turn in track(range(rounds + 1), "measuring", console=Console(stderr=True)):
        for name, method in VARIANTS.items():
            with nullcontext() if method is None else feathervlm.prune(model, method) as pruning:
                took, cache = seconds(lambda: prefill(model, inputs))
                step, _ = seconds(lambda cache=cache: decode(model, cache, tokens))
                if turn == 0:
                    continue
                row = found[name]
                row["prefill"].append(took)
                row["decode"].append(step / tokens)
                row["flops_ratio"] = row["kv_bytes_ratio"] = 1.0
                if pruning is not None:
                    report = pruning.report
                    row["selection"].append(report.selection_seconds)
                    row["flops_ratio"], row["kv_bytes_ratio"] = report.flops_ratio, report.kv_bytes_ratio
                    row["tokens"] = [len(stage.kept[0]) for stage in report.stages]
    return {"parameters": sum(p.numel() for p in model.parameters()), "raw": found, "rows": summarise(found)}


def summarise(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Median of the ratios to the unpruned run of the same round, and their quartiles."""
    plain = found["unpruned"]
    rows = []
    for name, row in found.items():
        rows.append(
            {
                "variant": name,
                "visual_tokens": [SIDE**2, *row.get("tokens", [])],
                "prefill_seconds": statistics.median(row["prefill"]),
                "prefill_ratio": spread(row["prefill"], plain["prefill"]),
                "flops_ratio": row["flops_ratio"],
                "selection_share": spread(row["selection"], plain["prefill"]) if row["selection"] else None,
                "decode_seconds": statistics.median(row["decode"]),
                "decode_ratio": spread(row["decode"], plain["decode"]),
                "kv_bytes_ratio": row["kv_bytes_ratio"],
            }
        )
    return rows


def spread(times: list[float], plain: list[float]) -> dict[str, float]:
    """Quartiles of the ratios, round by round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times, plain, strict=True)], n=4)
    return {"median": middle, "low": low, "high": high}


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(
        "variant", "prefill", "FLOPs", "selection", "decode", "KV", title="ratios to unpruned, median [quartiles]"
    )
    for row in rows:
        text = [
            "" if cell is None else f"{cell['median']:.3f} [{cell['low']:.3f} {cell['high']:.3f}]"
            for cell in (row["prefill_ratio"], row["decode_ratio"])
        ]
        share = row["selection_share"]
        selection = "" if share is None else f"{share['median']:.2%}"
        flops, kv = f"{row['flops_ratio']:.3f}", f"{row['kv_bytes_ratio']:.3f}"
        table.add_row(row["variant"], text[0], flops, selection, text[1], kv)
    Console().print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds after the discarded one")
    parser.add_argument("--new-tokens", type=int, default=8, help="decoding steps per round")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        result = {**provenance(), "layers": LAYERS, "text_tokens": TEXT, **measure(options.rounds, options.new_tokens)}
    show(result["rows"])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draft = options.out.with_suffix(".tmp")
        draft.write_text(json.dumps(result, indent=1) + "\n")
        draft.rename(options.out)


if __name__ == "__main__":
    main()
