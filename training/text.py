"""Text without pictures, for the language-model stage.

Half of the sequences are packed short documents: a scene described in words, then questions about it, answered; and
now and then a phrase said over and over. The other half is bursty: each token repeats an earlier one of the sequence
with a probability that falls off with the distance, as words recur in natural text; this is what gives the decoder a
preference for what is recent. Weights say how much each token counts in the loss.
"""

import numpy as np

from feathervlm.embedded.grading import write_box
from feathervlm.embedded.scenes import Item, Scene, World, arrange
from feathervlm.embedded.tasks import TASKS
from training.build import BOS, SPECIAL, VOCABULARY

INDEX = {word: i for i, word in enumerate(VOCABULARY)}
FRESH = 0.12
"""The share of tokens of a bursty sequence that are drawn anew."""
RECENCY = 60.0
"""Tokens over which the chance to be repeated falls to 1/e."""
ANSWER, WORD, COORDINATE = 4.0, 1.0, 0.5

TEMPLATES = [
    (("there", "is", "a"), ("at",), (".",)),
    (("we", "see", "a"), ("near",), (".",)),
    (("a",), (":",), (",",)),
    (("the",), ("is", "at"), (".",)),
]
Weighted = list[tuple[int, float]]


def encode(text: str) -> list[int]:
    """Token ids of words separated by spaces; coordinate tokens may stand together."""
    return [INDEX[word] for word in text.replace("><", "> <").split()]


def sequence(rng: np.random.Generator, length: int, hardest: int) -> Weighted:
    """`length` + 1 tokens with their weights.

    Args:
        rng: what decides.
        length: of the training sequence.
        hardest: the most objects in a described scene.
    """
    if rng.random() < 0.5:
        return bursty(rng, length + 1)
    tokens: Weighted = []
    while len(tokens) <= length:
        tokens += [(BOS, 0.0)] + (phrases(rng) if rng.random() < 0.2 else document(rng, hardest))
    return tokens[: length + 1]


def bursty(rng: np.random.Generator, length: int) -> Weighted:
    """Tokens that repeat earlier ones, the recent ones most of all."""
    fresh = rng.random(length) < FRESH
    tokens = rng.integers(len(SPECIAL), len(VOCABULARY), length)
    back = rng.exponential(RECENCY, length).astype(int) + 1
    for i in range(1, length):
        if not fresh[i]:
            tokens[i] = tokens[i - 1 - (back[i] - 1) % i]
    tokens[0] = BOS
    return [(int(token), 0.0 if i < 4 else WORD) for i, token in enumerate(tokens)]


def phrases(rng: np.random.Generator) -> Weighted:
    """A few words said again and again."""
    phrase = rng.integers(len(SPECIAL), len(VOCABULARY), rng.integers(2, 8)).tolist()
    joint = INDEX[("then", "again", "and")[rng.integers(3)]]
    return [(token, WORD) for _ in range(rng.integers(2, 6)) for token in (*phrase, joint)]


def document(rng: np.random.Generator, hardest: int) -> Weighted:
    """A scene in words and a few questions about it."""
    counts = range(min(3, hardest), hardest + 1) if hardest >= 3 else (hardest,)
    background, items = arrange(rng, World(counts=counts))
    scene = Scene(tuple(items), background, np.empty((0, 0, 3), np.uint8))
    tokens: Weighted = [(token, WORD) for token in encode(f"the background is {background} .")]
    for i in rng.permutation(len(items)):
        tokens += describe(rng, items[i])
    for _ in range(rng.integers(3, 9)):
        question = TASKS[list(TASKS)[rng.integers(len(TASKS))]].ask(scene, rng)
        if question:
            tokens += [(token, WORD / 4) for token in encode(f"{question.text} assistant:")]
            tokens += [(token, ANSWER) for token in encode(question.answer)] + [(INDEX["</s>"], WORD)]
    return tokens


def describe(rng: np.random.Generator, item: Item) -> Weighted:
    """One object in words."""
    first, middle, end = TEMPLATES[rng.integers(len(TEMPLATES))]
    says = f"with digit {item.digit}" if item.digit is not None else ""
    words = f"{' '.join(first)} {item.size} {item.colour} {item.shape} {says} {' '.join(middle)}"
    tokens = [(token, WORD) for token in encode(words)]
    tokens += [(token, COORDINATE) for token in encode(write_box(item.box))]
    return tokens + [(token, WORD) for token in encode(" ".join(end))]
