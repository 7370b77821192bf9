"""Runs a command, and ends it with all of its descendants when its own starter is gone.

Started as a script, with the standard library alone: `python -I vllm_supervisor.py COMMAND ...`.
Its standard input is a pipe whose other end the starter holds: when the starter ends, in order, by
a crash or by `kill -9`, the pipe closes. Descendants that lose their parent are handed to this
process (on Linux), so none gets away, whatever sessions or groups they made.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.1


def main(command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's to handle
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # Should this process itself be killed, the child is too. There are no other threads here.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
    )
    while child.poll() is None and not stopping and not _starter_is_gone():
        time.sleep(_POLL_SECONDS)
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    # The child may have left its own behind, and those theirs.
    while _kill_descendants():
        time.sleep(_POLL_SECONDS)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _starter_is_gone() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) == b""


def _kill_descendants() -> int:
    """Kill all descendants that still run, and how many those were."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # pid (name) state parent ...: the name may hold blanks and brackets
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    family, new = [], [os.getpid()]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        family += new
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(family)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
