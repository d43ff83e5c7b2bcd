"""Tasks whose answer is one of several choices."""

from collections.abc import Sequence

from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task


class Choice(Task):
    """A task whose answer is chosen by the probability of its first token."""

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        return Grade(float(answer == question.choices[question.target]))


def letters(question: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return a multiple-choice prompt and the letters to choose from.

    >>> print(letters("How many?", ["0", "1"])[0])
    How many?
    A. 0
    B. 1
    Answer with the option's letter from the given choices directly.
    """
    marked = [chr(ord("A") + number) for number in range(len(choices))]
    lines = [f"{letter}. {choice}" for letter, choice in zip(marked, choices, strict=True)]
    ending = "Answer with the option's letter from the given choices directly."
    return "\n".join([question, *lines, ending]), tuple(marked)
