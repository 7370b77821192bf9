"""How commands end when what they were given is wrong."""

import errno
import os

import pytest

from trl_r1zero.commands.errors import exit_on, noting_a_full_disk


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


def test_a_full_disk_says_where_and_how_to_go_on(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(SystemExit),
        exit_on("grpo.py", OSError),
        noting_a_full_disk("runs/a", "--resume_from_checkpoint", "auto"),
    ):
        raise full
    told = capsys.readouterr().err
    assert "No space left on device\nMake room for runs/a, and go on with: " in told
    assert told.endswith("--resume_from_checkpoint auto\n")
    with pytest.raises(OSError) as caught, noting_a_full_disk("runs/a"):
        raise OSError(errno.EACCES, "denied")
    assert "__notes__" not in vars(caught.value)
