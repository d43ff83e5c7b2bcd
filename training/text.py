"""Text without pictures, for the language-model stage.

By default half of the sequences are packed short documents: a scene described in words, then questions about it,
answered; and now and then a phrase said over and over. The other half is bursty: each token repeats an earlier one of
the sequence with a probability that falls off with the distance, as words recur in natural text; this is what gives the
decoder a preference for what is recent. A recipe may mix in a third kind, phrases that come back word for word, from
which a small decoder learns sooner to look things up. Weights say how much each token counts in the loss.
"""

from dataclasses import dataclass

import numpy as np

from feathervlm.embedded.questions import write_box
from feathervlm.embedded.scenes import Item, Scene, World, arrange
from feathervlm.embedded.tasks import TASKS
from training.build import BOS, SPECIAL, VOCABULARY

INDEX = {word: i for i, word in enumerate(VOCABULARY)}
FRESH = 0.12
"""The share of tokens of a bursty sequence that are drawn anew."""
RECENCY = 60.0
"""Tokens over which the chance to be repeated falls to 1/e."""
ANSWER, WORD, COORDINATE, FIRST = 4.0, 1.0, 0.5, 0.02
STRETCH, LONGEST = 96, 16
"""Tokens over which phrases recur before others take their place, and one more than a phrase has at most."""

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


@dataclass(frozen=True)
class Mix:
    """What the text consists of.

    Attributes:
        recall: the share of sequences that are phrases which come back.
        bursty: the share of bursty ones among the others.
        questions: the fewest after a description, and one more than the most.
    """

    recall: float = 0.0
    bursty: float = 0.5
    questions: tuple[int, int] = (3, 9)


def sequence(rng: np.random.Generator, length: int, hardest: int, mix: Mix) -> Weighted:
    """`length` + 1 tokens with their weights.

    Args:
        rng: what decides.
        length: of the training sequence.
        hardest: the most objects in a described scene.
        mix: of which kinds.
    """
    tokens: Weighted = []
    if mix.recall and rng.random() < mix.recall:
        while len(tokens) <= length:
            tokens += recall(rng)
        return tokens[: length + 1]
    if rng.random() < mix.bursty:
        return bursty(rng, length + 1)
    while len(tokens) <= length:
        tokens += [(BOS, 0.0)] + (phrases(rng) if rng.random() < 0.2 else document(rng, hardest, mix))
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


def recall(rng: np.random.Generator) -> Weighted:
    """One to three phrases of random words that come back in random order, each time word for word.

    To go on with a phrase a decoder has to find the word before in what it has read and see what came next, as the
    induction heads of language models do (arXiv 2209.11895); only words that can be told so count fully.
    """
    known = [
        rng.integers(len(SPECIAL), len(VOCABULARY), rng.integers(3, LONGEST)).tolist()
        for _ in range(rng.integers(1, 4))
    ]
    tokens, said = [(BOS, 0.0)], [False] * len(known)
    while len(tokens) < STRETCH:
        which = rng.integers(len(known))
        tokens += [(token, WORD if said[which] and i else FIRST) for i, token in enumerate(known[which])]
        said[which] = True
    return tokens


def phrases(rng: np.random.Generator) -> Weighted:
    """A few words said again and again."""
    phrase = rng.integers(len(SPECIAL), len(VOCABULARY), rng.integers(2, 8)).tolist()
    joint = INDEX[("then", "again", "and")[rng.integers(3)]]
    return [(token, WORD) for _ in range(rng.integers(2, 6)) for token in (*phrase, joint)]


def document(rng: np.random.Generator, hardest: int, mix: Mix) -> Weighted:
    """A scene in words and a few questions about it."""
    counts = range(min(3, hardest), hardest + 1) if hardest >= 3 else (hardest,)
    background, items = arrange(rng, World(counts=counts))
    scene = Scene(tuple(items), background, np.empty((0, 0, 3), np.uint8))
    tokens: Weighted = [(token, WORD) for token in encode(f"the background is {background} .")]
    for i in rng.permutation(len(items)):
        tokens += describe(rng, items[i])
    for _ in range(rng.integers(*mix.questions)):
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
