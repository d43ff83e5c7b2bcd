"""Where numbers come from."""

import sys

import pytest

from feathervlm.utils import provenance


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/feathervlm", "eval", "--limit", "5"], "feathervlm eval --limit 5"),
        ([str(provenance.Path(provenance.__file__).parents[1] / "__main__.py"), "demo"], "feathervlm demo"),
        (["scripts/compare.py", "a b"], "python scripts/compare.py 'a b'"),
    ],
)
def test_the_command_is_one_that_can_be_repeated(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "argv", words)
    assert provenance.command() == expected


def test_versions_and_machine():
    found = provenance.versions("numpy")
    assert list(found) == ["feathervlm", "transformers", "torch", "numpy", "python"]
    assert all(found.values())
    assert provenance.machine().endswith(" cores")
    assert provenance.versions().items() <= provenance.provenance().items()


def test_an_installed_package_has_no_commit(monkeypatch):
    monkeypatch.setattr(provenance, "_git", lambda *words: "")
    assert provenance.commit() is None
