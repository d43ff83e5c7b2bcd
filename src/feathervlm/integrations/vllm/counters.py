"""Counters of visual tokens, which vLLM's server shows under /metrics."""

from functools import cache

from prometheus_client import Counter


@cache
def _counters() -> tuple[Counter, Counter]:
    names = (
        ("feathervlm:visual_tokens", "Visual tokens of the pictures of all requests, before pruning."),
        ("feathervlm:kept_visual_tokens", "Visual tokens that entered the language model."),
    )
    first, second = (Counter(name, text, labelnames=["method"]) for name, text in names)
    return first, second


def count(method: str, tokens: int, kept: int) -> None:
    """Add a request.

    Args:
        method: Its method, or "unpruned".
        tokens: Number of visual tokens of its pictures.
        kept: Number of visual tokens that are kept.
    """
    for counter, number in zip(_counters(), (tokens, kept), strict=True):
        counter.labels(method).inc(number)
