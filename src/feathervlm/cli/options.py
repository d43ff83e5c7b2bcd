"""Options that several commands share, and how a list of methods is read."""

import re
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]


def split_specs(text: str) -> tuple[str, ...]:
    """The method specs in a list with commas, some of which belong to a spec.

    A comma separates two specs unless it stands in parentheses, or a parameter's name and `=` follow.

    >>> split_specs("none,fastv,feather:keep=0.3,stride=3,before-llm:method=(fastv:layer=3,keep=0.5)")
    ('none', 'fastv', 'feather:keep=0.3,stride=3', 'before-llm:method=(fastv:layer=3,keep=0.5)')
    """
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth and not re.match(r"\s*\w+\s*=", text[place + 1 :]):
            found.append(text[start:place])
            start = place + 1
    return tuple(spec.strip() for spec in [*found, text[start:]] if spec.strip())
