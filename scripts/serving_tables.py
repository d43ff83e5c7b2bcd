"""The tables of docs/results/serving.md, from `results/serving/`; used by `generate_docs.py`."""

from statistics import median
from typing import Any

from result_tables import markdown, read

MODELS = {
    "embedded": "the embedded model, 256 visual tokens",
    "170m": "LLaVA-170M with random weights, 576 visual tokens",
}
ENGINES = ("vllm", "transformers")


def _gain(name: str) -> str:
    document = read(f"serving/bench-{name}.json")
    rows = []
    for row in document["rows"]:
        speeds, first = row["requests_per_second"], row.get("first_token_seconds")
        served: list[str] = ["", "", "", ""]
        if first is not None:
            served = [
                f"{first['median']:.2f} / {first['95 %']:.2f}",
                str(row["prompt_tokens"]),
                str(row["blocks_per_request"]),
                str(row["requests_that_fit"]),
            ]
        cpu = f"{row['cpu_seconds_per_request'][0]:.3f}"
        rows.append([row["name"], f"{median(speeds):.2f} ({speeds[0]:.2f} to {speeds[-1]:.2f})", cpu, *served])
    titles = [
        "",
        "requests per second",
        "CPU seconds per request",
        "first token, median / 95 % (s)",
        "prompt tokens",
        "KV blocks",
        "requests that fit",
    ]
    settings = document["settings"]
    head = (
        f"{MODELS[name][0].upper()}{MODELS[name][1:]}: {settings['requests']} requests of {settings['new_tokens']} new "
        f"tokens each, at most {settings['batch']} at a time, {settings['rounds']} rounds in turns."
    )
    return f"{head}\n\n{markdown(titles, rows)}"


def gain_tables() -> str:
    """Return what pruning gains, on both models."""
    return "\n\n".join(_gain(name) for name in MODELS)


def load_table() -> str:
    """Return what happened under load, one column for each engine."""
    documents = [read(f"serving/load-{engine}.json") for engine in ENGINES]

    def outcomes(document: dict[str, Any]) -> str:
        counts: dict[str, int] = {}
        for row in document["outcomes"]:
            label = "closed by the client" if row["status"] == -1 else str(row["status"])
            counts[label] = counts.get(label, 0) + row["count"]
        return ", ".join(f"{label}: {count}" for label, count in sorted(counts.items()))

    facts = {
        "clients, requests": lambda d: f"{d['clients']}, {d['requests']}",
        "requests by status": outcomes,
        "answers that differ from those alone, and bad requests without a 4xx": lambda d: str(len(d["wrong"])),
        "requests per second": lambda d: f"{d['requests_per_second']:.1f}",
        "seconds of a good answer, median / 95 %": lambda d: (
            f"{d['seconds_of_good_answers']['median']:.1f} / {d['seconds_of_good_answers']['95 %']:.1f}"
        ),
        "memory after 100 requests, at the end (MB)": lambda d: (
            f"{d['megabytes']['after 100 requests']:.0f}, {d['megabytes']['at the end']:.0f}"
        ),
        "status of a request whose engine is killed": lambda d: _status(d["engine_killed"]["request_in_flight"]),
        "status of the next request": lambda d: _status(d["engine_killed"]["next_request"]),
        "seconds until the server ended": lambda d: f"{d['engine_killed']['seconds_until_it_ended']:.1f}",
        "seconds until a new one answered": lambda d: f"{d['engine_killed']['seconds_until_started_again']:.0f}",
    }
    rows = [[name, *(fact(document) for document in documents)] for name, fact in facts.items()]
    return markdown(["", *ENGINES], rows)


def _status(reply: dict[str, Any]) -> str:
    return str(reply["status"]) if reply["status"] else "none, the connection breaks"
