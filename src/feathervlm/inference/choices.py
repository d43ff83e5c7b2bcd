"""Answers chosen by the first token's probability, instead of being written.

Every choice must be one token where the answer begins; the likeliest of them is the answer. Knows tokenizers and
logits, and no task. Source: `return_string_probabilities` in TRI-ML/vlm-evaluation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes where a word begins."""


def first_tokens(tokenizer: Any, prompt: str, choices: Sequence[str]) -> list[int]:
    """The token with which each choice begins an answer to a prompt.

    A tokenizer that marks where words begin was trained on answers encoded by themselves, which begin with that mark
    (Llama 2, Vicuna, Mistral). Any other is asked what it adds to the prompt for the answer: then nobody has to know
    whether a space belongs to it.

    Args:
        tokenizer: the model's.
        prompt: as the chat template writes it, up to where the answer begins.
        choices: the answers.

    Raises:
        PruningError: if a choice is not exactly one token, or two begin alike.
    """
    found = [_first_token(tokenizer, prompt, choice) for choice in choices]
    if len(set(found)) < len(found):
        raise PruningError(
            f"The choices {', '.join(choices)} do not differ in their first token; the model cannot take this task."
        )
    return found


def _first_token(tokenizer: Any, prompt: str, choice: str) -> int:
    alone = tokenizer(choice, add_special_tokens=False)["input_ids"]
    if tokenizer.convert_ids_to_tokens(alone)[0].startswith(WORD_MARK):
        new = alone
    else:
        # A tokenizer of whole words takes an answer for the end of the prompt's last word unless a space is between.
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        joined = (tokenizer(prompt + lead + choice, add_special_tokens=False)["input_ids"] for lead in ("", " "))
        new = next((ids[len(before) :] for ids in joined if ids[: len(before)] == before), [])
    if len(new) != 1 or new[0] == tokenizer.unk_token_id:
        raise PruningError(
            f"The choice {choice!r} is not one token of this model behind {prompt[-12:]!r}; it cannot take this task."
        )
    return int(new[0])


def choose(logits: Tensor, tokens: Sequence[int]) -> list[int]:
    """Which choice is likeliest for each row: the number of the first of the best.

    The softmax does not change the order, so logits are compared as they are; NaN counts as the best, as it does for
    NumPy's argmax, which the paper's harness takes.

    Args:
        logits: (batch, vocabulary), of the first new token.
        tokens: one for each choice.
    """
    scores = logits[:, torch.tensor(tokens, device=logits.device)].float().cpu().numpy()
    return [int(row.argmax()) for row in scores]
