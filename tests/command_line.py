"""Calling the command line in a test: in this process, and what a result must look like."""

import json
import re
from typing import Any

from typer.testing import CliRunner, Result

from feathervlm.cli.main import app


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def sentence(result: Result) -> str:
    """The one sentence on stderr of a refused command."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr
