"""VQA soft accuracy with the three normalizations that are in use: of VQAv2, of VizWiz, and EvalAI's of TextVQA.

All three are made of two steps: `strip_marks` for punctuation and `plain_words` for numbers, articles and contractions.
They differ in what comes before, and in what the right answers go through. Facts: the public scorers of VQAv2, VizWiz
and TextVQA, as TRI-ML/vlm-evaluation runs them.
"""

import re
from collections.abc import Sequence

from feathervlm.evaluation.metrics import Protocol

MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""The 21 punctuation marks; full stops are a case of their own, and apostrophes and colons stay."""
NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
ARTICLES = {"a", "an", "the"}

_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)


def _contractions(apostrophe: str) -> dict[str, str]:
    """Every spelling that lacks one apostrophe, to the one that has it.

    The public table also has an entry the wrong way round, kept here; and entries in capital letters or that change
    nothing, left out here, since they can never have an effect.
    """
    table = {"somebody'd": "somebodyd"}
    for word in _CONTRACTED.split():
        table |= {word[:i] + word[i + 1 :]: word for i, letter in enumerate(word) if letter == "'"}
    return {key.replace("'", apostrophe): word.replace("'", apostrophe) for key, word in table.items()}


CONTRACTIONS = {apostrophe: _contractions(apostrophe) for apostrophe in "'`"}
"""By the apostrophe that is written: VizWiz's table has backticks."""


def strip_marks(text: str) -> str:
    """The text without punctuation (stage P).

    A mark leaves nothing behind if it stands next to a space anywhere in the text, or if a comma stands between two
    digits somewhere; else a space. Full stops that no digit follows leave nothing.
    """
    grouped = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in MARKS:
        gone = grouped or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if gone else " ")
    return re.sub(r"\.(?!\d)", "", stripped)


def plain_words(text: str, apostrophe: str = "'") -> str:
    """Lower-case words with digits for numbers, apostrophes in contractions, and no articles (stage D)."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    contractions = CONTRACTIONS[apostrophe]
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normal_vqa(text: str) -> str:
    """What VQAv2 makes of a prediction.

    >>> normal_vqa("The Two dogs.")
    '2 dogs'
    """
    return plain_words(strip_marks(_one_line(text)))


def normal_vizwiz(text: str) -> str:
    """What VizWiz makes of a prediction.

    >>> normal_vizwiz("isnt")
    'isn`t'
    """
    return plain_words(strip_marks(_one_line(text)), "`")


def normal_evalai(text: str) -> str:
    """What TextVQA makes of predictions and right answers.

    >>> normal_evalai("Bob's cafe")
    "bob 's cafe"
    """
    told = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(strip_marks(_one_line(told)))


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """How far an answer agrees with what people (ten, usually) said: the mean over leaving each of them out.

    For each person, a third of the number of the others who said the same, 1 at most.

    >>> round(soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7), 3)
    0.9
    """
    same = sum(one == answer for one in people)
    return sum(min(1.0, (same - (one == answer)) / 3) for one in people) / len(people)


def score_vqav2(answer: str, people: Sequence[str], protocol: Protocol) -> float:
    """VQAv2: `paper` strips marks of the right answers and does no more with them."""
    gold = strip_marks if protocol == "paper" else normal_vqa
    return soft_accuracy(normal_vqa(answer), [gold(one) for one in people])


def score_vizwiz(answer: str, people: Sequence[str], protocol: Protocol) -> float:
    """VizWiz: `paper` takes the right answers as they are; `symmetric` does with both what VQAv2 does."""
    if protocol == "paper":
        return soft_accuracy(normal_vizwiz(answer), people)
    return soft_accuracy(normal_vqa(answer), [normal_vqa(one) for one in people])


def score_textvqa(answer: str, people: Sequence[str]) -> float:
    """TextVQA: both sides alike, in either protocol."""
    return soft_accuracy(normal_evalai(answer), [normal_evalai(one) for one in people])
