"""An extension of griffe for the documentation site: a public name without a docstring fails the strict build.

It reads the source without importing it. A method without a docstring has to override one that is documented.
Examples are marked as code, because Markdown takes their prompts for quotations.
"""

import logging
import re
from typing import Any

import griffe

LOG = logging.getLogger("mkdocs.plugins.site_docstrings")
"""Warnings of loggers of MkDocs count in a strict build."""
EXAMPLE = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.MULTILINE)
"""An example: from a prompt to the next empty line."""


class PublicDocstrings(griffe.Extension):
    """Warn of every public module, class, function, method and exported value that nothing documents."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for path in undocumented(pkg):
            LOG.warning("%s has no docstring", path)
        mark_examples(pkg)


def undocumented(parent: griffe.Object) -> list[str]:
    """Return the paths of the public objects inside a module or class that neither they nor their bases document."""
    missing = [] if parent.has_docstring else [parent.path]
    for name, member in parent.members.items():
        if name.startswith("_"):
            continue
        if member.is_alias:
            if member.is_exported and member.final_target.is_attribute and not member.has_docstring:
                missing.append(member.path)
        elif member.is_attribute and "property" not in member.labels:
            continue
        elif member.is_function or member.is_attribute:
            if not member.has_docstring and not _inherits(parent, name):
                missing.append(member.path)
        else:
            missing += undocumented(member)
    return missing


def fenced(text: str) -> str:
    """Return a docstring with its examples as blocks of code, without flags for doctest."""

    def fence(example: re.Match[str]) -> str:
        return f"```pycon\n{re.sub(r'  # doctest: .*', '', example[0]).rstrip()}\n```\n"

    return EXAMPLE.sub(fence, text)


def mark_examples(parent: griffe.Object) -> None:
    """Mark the examples in the docstrings of an object and of all that it contains."""
    if parent.docstring:
        parent.docstring.value = fenced(parent.docstring.value)
    for member in parent.members.values():
        if not member.is_alias:
            mark_examples(member)


def _inherits(parent: griffe.Object, name: str) -> bool:
    """Return whether a base class inside the package documents the member of this name."""
    bases = parent.mro() if isinstance(parent, griffe.Class) else []
    return any(name in base.members and base.members[name].has_docstring for base in bases)
