"""What a terminal sees while work goes on."""

import warnings

from feathervlm.utils import progress


def test_only_own_warnings_pass_and_each_once(capsys):
    with progress.spinner("working") as say:
        for _ in range(2):
            warnings.warn("feathervlm runs\nunpruned", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        say("still working")
        print("a library talks")
    result = capsys.readouterr()
    assert result.out == ""
    assert result.err.count("warning: feathervlm runs unpruned\n") == 1
    assert "something else" not in result.err
    assert "a library talks" in result.err


def test_a_bar_is_drawn_at_a_terminal_only(capsys):
    with progress.bar("questions") as step:
        step("fastv", 1, 0)
        step("fastv", 2, 2)
    assert "questions" not in capsys.readouterr().out
