"""VQA soft accuracy with the three normalizations that are in use: of VQAv2, of VizWiz, and EvalAI's of TextVQA.

All three consist of two steps: `strip_marks` for punctuation and `plain_words` for numbers, articles and contractions.
They differ in the steps before, and in how the right answers are normalized. Source: the public scorers of VQAv2,
VizWiz and TextVQA, as TRI-ML/vlm-evaluation runs them.
"""

import re
from collections.abc import Sequence

from feathervlm.evaluation.metrics import Protocol

MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""The 21 punctuation marks; full stops are handled separately, and apostrophes and colons stay."""
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
    """Return a table from every spelling that lacks one apostrophe to the spelling with it.

    The public table has one reversed entry, which is kept; its entries in capital letters and those that change nothing
    never have an effect and are left out.
    """
    table = {"somebody'd": "somebodyd"}
    for word in _CONTRACTED.split():
        table |= {word[:i] + word[i + 1 :]: word for i, letter in enumerate(word) if letter == "'"}
    return {key.replace("'", apostrophe): word.replace("'", apostrophe) for key, word in table.items()}


CONTRACTIONS = {apostrophe: _contractions(apostrophe) for apostrophe in "'`"}
"""Tables by apostrophe; that of VizWiz has backticks."""


def strip_marks(text: str) -> str:
    """Return the text without punctuation (stage P).

    A mark is removed if it stands next to a space anywhere in the text, or if a comma stands between two digits
    somewhere; otherwise a space replaces it. Full stops without a digit after them are removed.
    """
    grouped = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in MARKS:
        gone = grouped or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if gone else " ")
    return re.sub(r"\.(?!\d)", "", stripped)


def plain_words(text: str, apostrophe: str = "'") -> str:
    """Return lower-case words with digits for numbers, apostrophes in contractions, and no articles (stage D)."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    contractions = CONTRACTIONS[apostrophe]
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normal_vqa(text: str) -> str:
    """Normalize a prediction as VQAv2 does.

    >>> normal_vqa("The Two dogs.")
    '2 dogs'
    """
    return plain_words(strip_marks(_one_line(text)))


def normal_vizwiz(text: str) -> str:
    """Normalize a prediction as VizWiz does.

    >>> normal_vizwiz("isnt")
    'isn`t'
    """
    return plain_words(strip_marks(_one_line(text)), "`")


def normal_evalai(text: str) -> str:
    """Normalize predictions and right answers as TextVQA does.

    >>> normal_evalai("Bob's cafe")
    "bob 's cafe"
    """
    spaced = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(strip_marks(_one_line(spaced)))


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return how far an answer agrees with the answers of people (usually ten).

    This is the mean over the people of a third of the number of other people with the same answer, 1 at most.

    >>> round(soft_accuracy("cat", ["cat"] * 3 + ["dog"] * 7), 3)
    0.9
    """
    same = sum(one == answer for one in people)
    return sum(min(1.0, (same - (one == answer)) / 3) for one in people) / len(people)


def score_vqav2(answer: str, people: Sequence[str], protocol: Protocol) -> float:
    """Score an answer to VQAv2; `paper` only strips marks from the right answers."""
    gold = strip_marks if protocol == "paper" else normal_vqa
    return soft_accuracy(normal_vqa(answer), [gold(one) for one in people])


def score_vizwiz(answer: str, people: Sequence[str], protocol: Protocol) -> float:
    """Score an answer to VizWiz; `paper` does not normalize the right answers, `symmetric` normalizes as VQAv2."""
    if protocol == "paper":
        return soft_accuracy(normal_vizwiz(answer), people)
    return soft_accuracy(normal_vqa(answer), [normal_vqa(one) for one in people])


def score_textvqa(answer: str, people: Sequence[str]) -> float:
    """Score an answer to TextVQA; both protocols normalize both sides."""
    return soft_accuracy(normal_evalai(answer), [normal_evalai(one) for one in people])
