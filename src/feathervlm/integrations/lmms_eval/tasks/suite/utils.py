"""The paper's figures of tasks that lmms-eval has: one `accuracy` for each, so that they can be averaged."""

from typing import Any

from feathervlm.evaluation.metrics.grounding import literal_box
from feathervlm.integrations.lmms_eval.scoring import chosen, is_hit


def refcoco(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Acc@0.5, read and rounded as the paper's harness does, and whether the box could be read."""
    true = [round(edge, 2) for edge in document["bbox"]]
    return {
        "accuracy": float(is_hit(results[0], true, 0.5)),
        "parse_failures": float(literal_box(results[0]) is None),
    }


def pope(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether Yes or No is right."""
    return _choice(results[0], ("Yes", "No"), document["answer"].strip().capitalize())


def ai2d(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the letter is right."""
    return _choice(results[0], "ABCD", "ABCD"[int(document["answer"])])


def _choice(answer: str, choices: tuple[str, ...] | str, right: str) -> dict[str, float]:
    found = chosen(answer, choices)
    return {"accuracy": float(found == right), "parse_failures": float(found is None)}
