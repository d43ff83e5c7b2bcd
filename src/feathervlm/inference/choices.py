"""Answers that are chosen by the probability of their first token instead of being written.

Every choice must be one token at the place where the answer begins; the likeliest of these tokens is the answer.
Source: `return_string_probabilities` in TRI-ML/vlm-evaluation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.inference.prompts import Prompt

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character that SentencePiece writes where a word begins."""


def choice_tokens(processor: Any, prompt: Prompt, choices: Sequence[str]) -> list[int]:
    """Return the token with which each choice begins the answer to a prompt, see `first_tokens`.

    The tokens depend on the end of the prompt, which the chat template writes and which is the same for all prompts.
    """
    text = processor.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
    return first_tokens(processor.tokenizer, text, choices)


def first_tokens(tokenizer: Any, prompt: str, choices: Sequence[str]) -> list[int]:
    """Return the token with which each choice begins the answer to a prompt.

    A tokenizer that marks where words begin was trained on answers that were encoded alone and begin with that mark
    (Llama 2, Vicuna, Mistral). For any other tokenizer the token is the one that the answer adds to the prompt, with
    or without a space before it.

    Args:
        tokenizer: Tokenizer of the model.
        prompt: Prompt as the chat template writes it, up to where the answer begins.
        choices: Possible answers.

    Raises:
        PruningError: A choice is not exactly one token, or two choices begin with the same token.
    """
    tokens = [_first_token(tokenizer, prompt, choice) for choice in choices]
    if len(set(tokens)) < len(tokens):
        raise PruningError(
            f"The choices {', '.join(choices)} do not differ in their first token; the model cannot take this task."
        )
    return tokens


def _first_token(tokenizer: Any, prompt: str, choice: str) -> int:
    alone = tokenizer(choice, add_special_tokens=False)["input_ids"]
    if tokenizer.convert_ids_to_tokens(alone)[0].startswith(WORD_MARK):
        new = alone
    else:
        # A tokenizer of whole words reads the answer as the end of the last word of the prompt without a space between.
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        joined = (tokenizer(prompt + lead + choice, add_special_tokens=False)["input_ids"] for lead in ("", " "))
        new = next((ids[len(before) :] for ids in joined if ids[: len(before)] == before), [])
    if len(new) != 1 or new[0] == tokenizer.unk_token_id:
        raise PruningError(
            f"The choice {choice!r} is not one token of this model after {prompt[-12:]!r}; it cannot take this task."
        )
    return int(new[0])


def choose(logits: Tensor, tokens: Sequence[int]) -> list[int]:
    """Return the index of the likeliest choice for each row, the first one among equals.

    The softmax keeps the order, so logits are compared directly. NaN counts as the largest, as in the argmax of NumPy
    that the harness of the paper uses.

    Args:
        logits: Logits of the first new token, of shape (batch, vocabulary).
        tokens: Token id of each choice.
    """
    scores = logits[:, torch.tensor(tokens, device=logits.device)].float().cpu().numpy()
    return [int(row.argmax()) for row in scores]
