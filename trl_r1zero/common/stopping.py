"""Ends that lose nothing: by a signal, or because the launcher is gone.

SIGTERM, SIGINT and SIGUSR1 (slurm's warning) ask a run to end; SIGTERM is also what a launcher's
end becomes. The first one is a request; a second one ends the process at once.
"""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Programs that start trainers, by the name of their script, and by that of their module.
_LAUNCHERS = {"accelerate", "torchrun", "deepspeed"}
LAUNCHER = "TRL_R1ZERO_LAUNCHER"  # in the environment: the process that is `trl-r1zero METHOD`
_LAUNCHER_MODULES = {"accelerate.commands.launch", "torch.distributed.run"}
_LOOK_SECONDS = 0.5
# Launchers, and whoever ends what they leave behind, send again what was sent to all at once.
_PASSED_ON_SECONDS = 2.0

_launcher_gone, _not_told_yet = threading.Event(), threading.Event()


class RunStopped(SystemExit):
    """A signal has ended the work in good order; the exit status is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopSignals:
    """Within the `with`, the first signal is kept in `number`; with `at_once` it raises RunStopped.

    A signal that nobody has acted on is handed on at the end. Only in the main thread; elsewhere
    signals are as they were.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.number = 0
        self.handled = False  # somebody ends the run because of it
        self._at_once = at_once
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()
        self._when = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            wanted = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as by nohup
            self._before = {n: signal.signal(n, self._receive) for n in wanted}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.number and not self.handled:
            os.kill(os.getpid(), self.number)

    def _receive(self, number: int, frame: object) -> None:
        if os.getpid() != self._owner:  # a forked child has inherited this
            _die(number)
        again = self._is_the_same_request()
        if self.number and not again:
            if number == signal.SIGINT and "ipykernel" in sys.modules:
                raise KeyboardInterrupt  # the notebook lives on
            _die(number)
        if self.number:
            return
        self.number, self._when = number, time.monotonic()
        if self._at_once:
            self.handled = True
            raise RunStopped(number)
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            print("\nEnding after this update; again: at once.", file=sys.stderr, flush=True)

    def _is_the_same_request(self) -> bool:
        if _not_told_yet.is_set():  # the launcher's end follows from a signal to both
            _not_told_yet.clear()
            return True
        passed_on = _launcher_gone.is_set() or "TORCHELASTIC_RUN_ID" in os.environ
        return passed_on and time.monotonic() - self._when < _PASSED_ON_SECONDS


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@cache
def end_with_launcher() -> None:
    """From now on the end of this process's launcher, if it has one, is a SIGTERM to it."""
    if _launcher() is None and multiprocessing.parent_process() is None:
        return  # a shell may end before what it has started
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        _launcher_gone.set()
        _not_told_yet.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


@cache
def _launcher() -> tuple[str, ...] | None:
    """The command line of the launcher that is this process's parent."""
    with suppress(psutil.Error):
        command = psutil.Process(os.getppid()).cmdline()
        own = os.environ.get(LAUNCHER) == str(os.getppid())
        if own or (
            {Path(word).stem for word in command[:2]} & _LAUNCHERS
            or _LAUNCHER_MODULES & set(command[1:4])
        ):
            return tuple(command)
    return None


def how_to_go_on(*more: str) -> str:
    """The command that this process was started with, as a shell takes it, with more arguments."""
    command = list(_launcher() or psutil.Process().cmdline())
    names = {word.partition("=")[0] for word in command}
    if not more or more[0].partition("=")[0] not in names:
        end = command.index("--") if "--" in command else len(command)  # what is accelerate's
        command[end:end] = more
    return shlex.join(command)
