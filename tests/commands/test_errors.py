"""How commands end when what they were given is wrong."""

import pytest

from trl_r1zero.commands.errors import exit_on


def test_an_error_of_the_user_ends_with_its_message_and_notes(capsys):
    error = ValueError("no such folder")
    error.add_note("3 of 4 rows are there")
    with pytest.raises(SystemExit) as caught, exit_on("program", OSError, ValueError):
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err == "program: error: no such folder\n3 of 4 rows are there\n"


def test_other_errors_pass():
    with pytest.raises(KeyError), exit_on("program", ValueError):
        raise KeyError("a bug")
