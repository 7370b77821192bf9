"""Runs a command and ends it, with all of its descendants, when the process that wanted it is gone.

Not imported but started, so that it needs little and is there at once:

    python -I vllm_supervisor.py OWNER_PID GRACE_SECONDS PREFIX VARIABLE COMMAND ...

Standard input is a pipe that the owner holds and never writes to: its end means stop, as does the
end of the owner (whose forked children may hold the pipe open). The first line of standard output
is the command's pid; the command writes to standard error. The exit status is the command's
(128 + n after signal n).

A server whose engine or worker is killed may go on as if nothing were, with requests that nobody
will answer: the end of any process whose title begins with PREFIX (`VLLM::`) is the end of all.
vLLM leaves its sockets behind: here they lie in a folder, named by the environment's VARIABLE, that
only this user can look into, and that goes with the command.

Stopping is SIGTERM to the command, and SIGKILL to whatever is left after the grace time. On Linux
orphans of the command come back to this process (PR_SET_CHILD_SUBREAPER), so that sessions and
process groups of their own do not hide them. Elsewhere the command's process group is killed.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

import psutil

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_POLL_SECONDS = 0.1
_KILL_SECONDS = 10.0
_ENGINE_SECONDS = 0.5
_ENGINE_GRACE_SECONDS = 5.0
# A socket's path has 107 bytes at most on Linux, of which vLLM's name and the folder's take 51.
_LONGEST_SOCKET_BASE = 56


def main(owner: str, grace_seconds: str, prefix: str, variable: str, *command: str) -> int:
    """Run the command; see the module."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    base = os.environ.get(variable, tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST_SOCKET_BASE:
        base = "/tmp"
    with tempfile.TemporaryDirectory(
        prefix="vllm-", dir=base, ignore_cleanup_errors=True
    ) as sockets:
        os.environ[variable] = sockets
        return _supervise(int(owner), float(grace_seconds), prefix, command)


def _supervise(owner: int, grace_seconds: float, prefix: str, command: tuple[str, ...]) -> int:
    asked_to_stop: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked_to_stop.append(True))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        # Should this process itself be killed, the server stops all the same. One thread: safe.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
    )
    print(process.pid, flush=True)
    engine = _EngineWatch(prefix)
    while process.poll() is None and not asked_to_stop and not _owner_is_gone(owner):
        if (name := engine.lost()) is not None:
            # Mostly the server notices, says why and ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENGINE_GRACE_SECONDS)
            print(f"vllm_supervisor.py: the server lost its {name}", file=sys.stderr)
            break
        time.sleep(_POLL_SECONDS)
    ended_by_itself = process.poll() is not None
    if not ended_by_itself:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    _kill_descendants(process)
    status = process.wait()
    with contextlib.suppress(ChildProcessError):  # orphans; a container's first process may not
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    if ended_by_itself and status < 0:
        name = signal.Signals(-status).name
        print(f"vllm_supervisor.py: the server was ended by {name}", file=sys.stderr)
    return status if status >= 0 else 128 - status


class _EngineWatch:
    """Remembers the processes below this one that vLLM named; on Linux only."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[psutil.Process, str] = {}
        self._next_look = 0.0

    def lost(self) -> str | None:
        """The name of one that has ended since an earlier call; None if all are there."""
        if sys.platform != "linux" or time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + _ENGINE_SECONDS
        running = _descendants()
        titles = {process.pid: title for process, (title, _) in running.items()}
        for process, (title, parent) in running.items():
            # A child that a worker forks to run a program has the worker's name until it does.
            if title.startswith(self._prefix) and titles.get(parent) != title:
                self._names[process] = title
        return next((name for one, name in self._names.items() if one not in running), None)


def _owner_is_gone(owner: int) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) or os.getppid() != owner


def _kill_descendants(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to everything below this process, until nothing is there."""
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    # A process in an uninterruptible wait (a driver that hangs) may outlast any signal.
    deadline = time.monotonic() + _KILL_SECONDS
    while (running := _descendants()) and time.monotonic() < deadline:
        for one in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        time.sleep(0.02)


def _descendants() -> dict[psutil.Process, tuple[str, int]]:
    """All processes below this one, with title and parent; those that have ended apart."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, or it ended meanwhile
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process] = (" ".join(process.cmdline()).rstrip(), process.ppid())
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
