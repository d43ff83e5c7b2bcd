"""First tokens: found by how a tokenizer treats the place where an answer begins; the likeliest one is the answer."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from feathervlm import PruningError
from feathervlm.inference.choices import choose, first_tokens

CORPUS = ["USER: True or False Yes No ASSISTANT: A B C D True", "In: what? Out: Yes\nNo False"] * 20


def trained(pre, decoder):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def marking():
    """Marks where words begin, as Llama 2's does."""
    return trained(pre_tokenizers.Metaspace(), decoders.Metaspace())


@pytest.fixture(scope="module")
def bytewise():
    """Spaces belong to the words after them, as in Qwen's and Llama 3's."""
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def test_a_tokenizer_that_marks_words_gives_the_piece_that_begins_one(marking):
    found = first_tokens(marking, "USER: what? ASSISTANT:", ["True", "False"])
    assert marking.convert_ids_to_tokens(found) == ["▁True", "▁False"]


def test_others_are_asked_what_they_add_to_the_prompt(bytewise):
    assert bytewise.convert_ids_to_tokens(first_tokens(bytewise, "Out:\n", ["A", "B", "C"])) == ["A", "B", "C"]


def test_a_choice_of_several_tokens_is_refused(bytewise):
    with pytest.raises(PruningError, match="'Perhaps' is not one token"):
        first_tokens(bytewise, "ASSISTANT:\n", ["A", "Perhaps"])


def test_a_choice_that_melts_into_the_prompt_is_refused(bytewise):
    with pytest.raises(PruningError, match="'e' is not one token of this model after 'USER: Tru'"):
        first_tokens(bytewise, "USER: Tru", ["e"])


def test_a_tokenizer_of_whole_words_is_asked_with_a_space():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "assistant:": 1, "yes": 2, "no": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert first_tokens(tokenizer, "what ? assistant:", ["no", "yes"]) == [3, 2]


def test_choices_that_begin_alike_are_refused(marking):
    with pytest.raises(PruningError, match="do not differ"):
        first_tokens(marking, "Out:", ["Yes", "Yes"])


def test_the_likeliest_choice_and_the_first_of_equals():
    logits = torch.tensor([[9.0, 1.0, 2.0, 2.0], [0.0, 5.0, 2.0, 6.0], [9.0, -torch.inf, -torch.inf, -torch.inf]])
    assert choose(logits, [1, 2, 3]) == [1, 2, 0]
    assert choose(logits.bfloat16(), [3, 2, 1]) == [0, 0, 0]
    assert choose(torch.full((1, 4), torch.nan), [2, 1]) == [0]
