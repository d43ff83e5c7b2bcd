"""Text without pictures, for the language-model stage.

By default half of the sequences are packed short documents: a scene in words with questions and answers about it, and
sometimes a repeated phrase. The other half is bursty: each token repeats a previous one of the sequence with a
probability that decreases with the distance, as words recur in natural text; this gives the decoder a preference for
recent tokens. A recipe may add phrases that return word for word, from which a small decoder learns sooner to copy from
its context. Every token has a weight in the loss.
"""

from dataclasses import dataclass

import numpy as np

from training.build import BOS, SPECIAL, VOCABULARY
from training.world.questions import LOCATIONS, write_box
from training.world.scenes import Item, Scene, World, arrange
from training.world.tasks import TASKS

INDEX = {word: i for i, word in enumerate(VOCABULARY)}
PLACES = range(INDEX[LOCATIONS[0]], INDEX[LOCATIONS[-1]] + 1)
"""The ids of the coordinate tokens, in order."""
FRESH = 0.12
"""Share of the tokens of a bursty sequence that are drawn at random."""
RECENCY = 60.0
"""Distance in tokens at which the probability of a repetition falls to 1/e."""
ANSWER, WORD, COORDINATE, FIRST = 4.0, 1.0, 0.5, 0.02
STRETCH, LONGEST = 96, 16
"""Number of tokens over which the same phrases recur, and one more than the largest length of a phrase."""

TEMPLATES = [
    (("there", "is", "a"), ("at",), (".",)),
    (("we", "see", "a"), ("near",), (".",)),
    (("a",), (":",), (",",)),
    (("the",), ("is", "at"), (".",)),
]
Weighted = list[tuple[int, float]]


def encode(text: str) -> list[int]:
    """Return the token ids of words separated by spaces; coordinate tokens need no spaces between them."""
    return [INDEX[word] for word in text.replace("><", "> <").split()]


@dataclass(frozen=True)
class Mix:
    """The composition of the text.

    Attributes:
        recall: Share of the sequences that consist of returning phrases.
        bursty: Share of bursty sequences among the others.
        questions: Smallest number of questions after a description, and one more than the largest.
    """

    recall: float = 0.0
    bursty: float = 0.5
    questions: tuple[int, int] = (3, 9)


def sequence(rng: np.random.Generator, length: int, hardest: int, mix: Mix) -> Weighted:
    """Return `length` + 1 tokens with their weights.

    Args:
        rng: Random generator.
        length: Length of the training sequence.
        hardest: Largest number of objects in a described scene.
        mix: Composition of the text.
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
    """Return tokens that repeat previous ones, recent ones with higher probability."""
    fresh = rng.random(length) < FRESH
    tokens = rng.integers(len(SPECIAL), len(VOCABULARY), length)
    back = rng.exponential(RECENCY, length).astype(int) + 1
    for i in range(1, length):
        if not fresh[i]:
            tokens[i] = tokens[i - 1 - (back[i] - 1) % i]
    tokens[0] = BOS
    return [(int(token), 0.0 if i < 4 else WORD) for i, token in enumerate(tokens)]


def recall(rng: np.random.Generator) -> Weighted:
    """Return one to three phrases of random words that return in random order, each time word for word.

    To continue a phrase, a decoder has to find the previous word in its context and copy the word after it, as the
    induction heads of language models do (arXiv 2209.11895); only words that can be predicted so have full weight.
    """
    known = [
        rng.integers(len(SPECIAL), len(VOCABULARY), rng.integers(3, LONGEST)).tolist()
        for _ in range(rng.integers(1, 4))
    ]
    tokens, seen = [(BOS, 0.0)], [False] * len(known)
    while len(tokens) < STRETCH:
        which = rng.integers(len(known))
        tokens += [(token, WORD if seen[which] and i else FIRST) for i, token in enumerate(known[which])]
        seen[which] = True
    return tokens


def phrases(rng: np.random.Generator) -> Weighted:
    """Return a phrase that is repeated several times."""
    phrase = rng.integers(len(SPECIAL), len(VOCABULARY), rng.integers(2, 8)).tolist()
    joint = INDEX[("then", "again", "and")[rng.integers(3)]]
    return [(token, WORD) for _ in range(rng.integers(2, 6)) for token in (*phrase, joint)]


def document(rng: np.random.Generator, hardest: int, mix: Mix) -> Weighted:
    """Return a scene in words with questions and answers about it."""
    counts = range(min(3, hardest), hardest + 1) if hardest >= 3 else (hardest,)
    background, items = arrange(rng, World(counts=counts))
    scene = Scene(tuple(items), background, np.empty((0, 0, 3), np.uint8), np.empty((0, 0), np.int16))
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
    """Return the description of one object."""
    first, middle, end = TEMPLATES[rng.integers(len(TEMPLATES))]
    says = f"with digit {item.digit}" if item.digit is not None else ""
    words = f"{' '.join(first)} {item.size} {item.colour} {item.shape} {says} {' '.join(middle)}"
    tokens = [(token, WORD) for token in encode(words)]
    tokens += [(token, COORDINATE) for token in encode(write_box(item.box))]
    return tokens + [(token, WORD) for token in encode(" ".join(end))]
