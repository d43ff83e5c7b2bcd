"""GQA: an answer is right if it is the right one, word for word. Knows texts only."""

import string

from feathervlm.evaluation.metrics import Protocol

_MARKS = str.maketrans("", "", string.punctuation)


def normal_gqa(text: str) -> str:
    """Lower case without ASCII punctuation.

    >>> normal_gqa("T-shirt.")
    'tshirt'
    """
    return text.translate(_MARKS).lower()


def score_gqa(answer: str, right: str, protocol: Protocol) -> float:
    """1 if the answer is right, else 0.

    `paper` does not normalize the right answer, so that one with a hyphen can never be met.
    """
    return float(normal_gqa(answer.strip()) == (right if protocol == "paper" else normal_gqa(right)))
