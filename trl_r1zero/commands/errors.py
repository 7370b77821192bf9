"""How commands read their words, and how they end when these are wrong or a signal asks them to."""

import argparse
import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trl_r1zero.common.processes import is_main_process
from trl_r1zero.common.stopping import RunStopped, StopSignals, end_with_launcher, how_to_go_on

# Set to anything, errors come with their traceback.
TRACEBACK = "TRL_R1ZERO_TRACEBACK"
_NO_ROOM = 2**20  # bytes that a disk may have left where a write has failed for want of them


def command_line(program: str, text: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` has a command's docstring as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(program, None, text, formatter_class=raw, allow_abbrev=False)


@contextmanager
def exit_on(program: str, *kinds: type[BaseException]) -> Iterator[None]:
    """End with status 2 and a message, for errors of these kinds: the program is not at fault."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads the output
        raise
    except kinds as error:
        if os.environ.get(TRACEBACK):
            raise
        message = "\n".join([f"{program}: error: {error}", *vars(error).get("__notes__", [])])
        print(message, file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def noting_a_full_disk(folder: str | Path, *more: str) -> Iterator[None]:
    """Let a write that found no room, in whatever words, be an OSError that says where, and which
    command goes on."""
    try:
        yield
    except Exception as error:
        if not _finds_no_room(error, Path(folder)):
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        full.add_note(f"Make room, and go on with: {how_to_go_on(*more)}")
        raise full from error


def _finds_no_room(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "inline_container" in str(error):  # torch.save, which does not say why
        return folder.is_dir() and shutil.disk_usage(folder).free < _NO_ROOM
    return os.strerror(errno.ENOSPC) in str(error)  # safetensors


@contextmanager
def stopping_in_words(*more: str) -> Iterator[None]:
    """End with status 128 + n and one line for a signal n that nobody within it takes; `more` is
    what the command that goes on has besides the arguments of this one."""
    end_with_launcher()
    signals = StopSignals(at_once=True)
    try:
        with signals:
            yield
    except RunStopped as stopped:
        if signals.number and is_main_process():
            name, notes = signal.Signals(stopped.number).name, vars(stopped).get("__notes__", [])
            line = "; ".join([f"Stopped by {name}", *notes, f"go on with: {how_to_go_on(*more)}"])
            print(f"\n{line}", file=sys.stderr, flush=True)
        raise
