"""The few words of the embedded model; a question with other words is refused instead of being asked as `<unk>`."""

from collections.abc import Iterable
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.embedded.tasks import WORDS


def check_words(processor: Any, texts: Iterable[str]) -> None:
    """Refuse questions with words that the embedded model does not have.

    Args:
        processor: Processor of the embedded model, or of one from another training run.
        texts: Texts of the questions.

    Raises:
        PruningError: A question has other words.
    """
    for text in texts:
        encoded = processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        unknown = [text[a:b] for token, (a, b) in pairs if token == processor.tokenizer.unk_token_id]
        if unknown:
            known = " ".join(word for word in WORDS if word.isalpha())
            raise PruningError(
                f"The embedded model does not know {', '.join(map(repr, unknown))}; ask something like "
                f"'where is the small red circle ?', in these words: {known}. For other questions give a --model."
            )
