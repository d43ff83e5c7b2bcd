"""Text sequences have their length, and repeat what they should."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from training import text
from training.build import VOCABULARY
from training.language import bag_loss


@pytest.mark.parametrize("mix", [text.Mix(), text.Mix(recall=0.5), text.Mix(bursty=0.0, questions=(10, 21))])
def test_sequences_are_as_long_as_asked(mix):
    rng = np.random.default_rng(0)
    for _ in range(10):
        sequence = text.sequence(rng, 100, 4, mix)
        assert len(sequence) == 101
        assert all(0 <= token < len(VOCABULARY) and weight >= 0 for token, weight in sequence)


def test_phrases_come_back_word_for_word():
    """After a phrase was said once, each word but its first follows the one before as it did."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = text.recall(rng)
        assert tokens[0] == (text.BOS, 0.0)
        followers: dict[int, set[int]] = {}
        again = 0
        for (before, _), (token, weight) in pairwise(tokens):
            if weight == text.WORD:
                again += 1
                assert token in followers[before]
            followers.setdefault(before, set()).add(token)
        assert again > len(tokens) / 4


def test_the_bag_of_words_is_that_of_the_last_words():
    """The loss is the mean over the last words of their cross-entropy, whatever their order."""
    torch.manual_seed(0)
    tokens, logits, words = torch.randint(7, (2, 6)), torch.randn(2, 6, 7), 3
    chances = logits.log_softmax(-1)
    means = []
    for back in range(words):
        pairs = [(row, at) for row in range(2) for at in range(back, 6)]
        means.append(-sum(chances[row, at, tokens[row, at - back]] for row, at in pairs) / len(pairs))
    torch.testing.assert_close(bag_loss(logits, tokens, words), sum(means) / words)
