"""How commands end when what they were given is wrong."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

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


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 47488 vs 47376"),
    ],
)
def test_a_full_disk_says_where_and_how_to_go_on(full, tmp_path, monkeypatch, capsys):
    """In the words of whoever wrote: Python, safetensors, torch."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with (
        pytest.raises(SystemExit),
        exit_on("grpo.py", OSError),
        noting_a_full_disk(tmp_path, "--resume_from_checkpoint", "auto"),
    ):
        raise full
    told = capsys.readouterr().err
    assert f"No space left on device: '{tmp_path}'\nMake room, and go on with: " in told
    assert told.endswith("--resume_from_checkpoint auto\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "denied"), RuntimeError("at inline_container.cc:672")]
)
def test_other_errors_of_files_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, noting_a_full_disk(tmp_path):
        raise error
    assert caught.value is error
