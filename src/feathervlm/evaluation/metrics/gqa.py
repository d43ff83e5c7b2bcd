"""GQA: an answer is right if it equals the right one, word for word."""

import string

from feathervlm.evaluation.metrics import Protocol

_MARKS = str.maketrans("", "", string.punctuation)


def normal_gqa(text: str) -> str:
    """Return a text in lower case without ASCII punctuation.

    >>> normal_gqa("T-shirt.")
    'tshirt'
    """
    return text.translate(_MARKS).lower()


def score_gqa(answer: str, right: str, protocol: Protocol) -> float:
    """Return 1 if the answer is right, else 0.

    `paper` does not normalize the right answer, so that an answer with a hyphen is never right.
    """
    return float(normal_gqa(answer.strip()) == (right if protocol == "paper" else normal_gqa(right)))
