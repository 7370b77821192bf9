"""Runs what a plan's runs lack, each in processes of its own.

A run that fails or diverges is recorded, and the others go on. What is finished is never run again;
what broke off goes on from its last checkpoint; what failed is tried again when a sweep is started
anew; what diverged is left, for it would do so again.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import torch

from trl_r1zero.common.run_files import METRICS_FILE, read_metrics
from trl_r1zero.devices.facts import visible_here
from trl_r1zero.evaluation.metrics import mean
from trl_r1zero.runs.index import (
    LOG_FILE,
    Attempt,
    diverged_at,
    duration,
    index_run,
    now,
    record,
    run_state,
)

from .experiment import Experiment
from .plan import Plan, PlannedRun, Slot, launch_command

LOCK_FILE = ".sweep.lock"
POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between looks at a run's metrics
PROGRESS_SECONDS = 300.0  # between lines that say how far the runs are
END_SECONDS = 60.0  # for a run's processes to end when asked to
REASON_LINES = 3
REASON_CHARACTERS = 500
START_MARK = "# sweep, "
# Of a traceback the line without indentation is the error; a launcher's own only says that there
# was one.
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b|[\w.-]+(?: [\w-]+)?: error: ")
_LAUNCHERS = ("subprocess.CalledProcessError", "torch.distributed.elastic")
DONE = ("finished", "diverged")
# Loaded here: little may be done between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class _Running:
    """A run that is running. The lock is held by its own process too, so that a sweep that is
    started while the run is still there, its first sweep having been killed, does not start it
    twice."""

    run: PlannedRun
    slot: Slot
    process: subprocess.Popen
    lock: IO[bytes]
    started: str = field(default_factory=now)
    begin: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)

    def outcome(self) -> tuple[str, str] | None:
        """How it ended and why; None while it runs. Ends a run that has diverged."""
        folder = self.run.folder
        exit_code = self.process.poll()
        if exit_code is None:
            if time.monotonic() - self.looked < LOOK_SECONDS:
                return None
            self.looked = time.monotonic()
            if not (folder / METRICS_FILE).is_file():
                return None
            diverged = diverged_at(read_metrics(folder))
            if diverged:
                _end_processes(self.process)
            return ("diverged", diverged) if diverged else None
        _end_processes(self.process)  # what its children left behind
        state = run_state(folder)
        if state.status == "diverged" or (state.status == "finished" and exit_code == 0):
            return state.status, state.reason
        return "failed", _why_failed(folder / LOG_FILE, exit_code)

    def record(self, outcome: str, reason: str = "") -> str:
        """Write how it ended into its folder, and unlock that; returns the same in words."""
        seconds = round(time.monotonic() - self.begin, 1)
        record(self.run.folder, Attempt(self.started, seconds, outcome, reason, str(self.slot)))
        self.lock.close()
        because = f": {reason}" if reason else ""
        return f"{self.run.name}: {outcome} in {seconds / 60:.1f} min{because}"


class Sweep:
    """Runs of several plans of one scale, in the plans' order, in slots; a run that several ask for
    is run once. `say` gets a line for whatever happens. A ValueError if two runs of one folder have
    different settings."""

    def __init__(
        self, plans: Sequence[Plan], slots: Sequence[Slot], say: Callable[[str], None] = print
    ) -> None:
        self._experiment_of: dict[Path, Experiment] = {}
        run_at: dict[Path, PlannedRun] = {}
        for plan in plans:
            for run in plan.runs:
                if run.folder not in run_at:
                    self._experiment_of[run.folder] = plan.experiment
                    run_at[run.folder] = run
                elif differing := run_at[run.folder].differing_settings(run.recipe.values):
                    raise ValueError(
                        f"{plan.experiment.path} and {self._experiment_of[run.folder].path} have "
                        f"different runs in {run.folder} ({'; '.join(differing)}): give their base "
                        "recipes different file names, or run them with different --root"
                    )
        self.runs = list(run_at.values())
        self._slots = slots
        self._environments: dict[Slot, dict[str, str]] = {}
        self._say = say

    def run(self) -> None:
        """Run everything that is neither finished nor diverged. A ValueError, and nothing is
        started, if a run's folder holds a run with other settings, or a slot's GPUs are not there;
        KeyboardInterrupt on SIGINT and SIGTERM, after the current runs were ended."""
        for run in self.runs:
            run.check_folder()
        visible = visible_here()
        self._environments = {slot: slot.environment(visible) for slot in self._slots}
        waiting = [run for run in self.runs if run_state(run.folder).status not in DONE]
        running: list[_Running] = []
        total, told = len(waiting), time.monotonic()
        taken: list[float] = []  # seconds of each run that has ended
        interrupt = signal.getsignal(signal.SIGINT)
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while waiting or running:
                self._start(waiting, running)
                time.sleep(POLL_SECONDS)
                for one in list(running):
                    outcome = one.outcome()
                    if outcome is not None:
                        running.remove(one)
                        taken.append(time.monotonic() - one.begin)
                        self._say(f"[{len(taken)}/{total}] {one.record(*outcome)}")
                if running and time.monotonic() - told >= PROGRESS_SECONDS:
                    told = time.monotonic()
                    self._say(self._progress(running, len(waiting), taken))
        except BaseException:
            # A second Ctrl-C must not leave runs behind that hold their GPUs.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if running:
                self._say(f"Ending {len(running)} run(s), which may take a minute ...")
            for one in running:  # all at once, before any is waited for
                _signal_group(one.process, signal.SIGTERM)
            for one in running:
                _end_processes(one.process, asked=True)
                one.record("stopped")
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
            signal.signal(signal.SIGINT, interrupt)

    def _start(self, waiting: list[PlannedRun], running: list[_Running]) -> None:
        """Give the free slots runs to do."""
        taken = {one.slot for one in running}
        for slot in [slot for slot in self._slots if slot not in taken]:
            for run in list(waiting):
                run.folder.mkdir(parents=True, exist_ok=True)
                lock = _locked(run.folder)
                if lock is None:
                    continue  # another sweep runs it; it is looked at again when that is done
                waiting.remove(run)
                if run_state(run.folder).status in DONE:  # done by another sweep meanwhile
                    lock.close()
                    continue
                running.append(self._launch(run, slot, lock))
                break

    def _progress(self, running: list[_Running], waiting: int, taken: list[float]) -> str:
        """How far the runs are, and the time that is left if those that wait take as long."""
        lines, left, whole = [], [], list(taken)
        for one in running:
            begun = (one.run.folder / METRICS_FILE).is_file()
            state = index_run(one.run.folder) if begun else None
            lines.append(f"  {one.run.name}: {(state and state.progress()) or 'starting'}")
            if state is not None and state.seconds_left is not None:
                left.append(state.seconds_left)
                whole.append(time.monotonic() - one.begin + state.seconds_left)
        head = f"{len(taken)} ended, {len(running)} running, {waiting} waiting"
        if len(left) == len(running):
            seconds = (sum(left) + waiting * mean(whole)) / len(self._slots)
            head += f", about {duration(max([seconds, *left]))} left"
        return "\n".join([head, *lines])

    def _launch(self, run: PlannedRun, slot: Slot, lock: IO[bytes]) -> _Running:
        command = launch_command(self._experiment_of[run.folder], run, slot)
        environment = {**os.environ, **self._environments[slot]}
        if not torch.accelerator.is_available():
            # Runs side by side whose threads wait for one another are many times slower.
            environment.setdefault("OMP_NUM_THREADS", "1")
        with (run.folder / LOG_FILE).open("ab") as log:
            log.write(f"\n{START_MARK}{now()}: {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # to be ended with all its children
                pass_fds=(lock.fileno(),),
                preexec_fn=_end_with_sweep,  # noqa: PLW1509
            )
        where = f" on GPU {slot}" if slot.gpus else ""
        self._say(f"{run.name}: started{where}, {run.folder}")
        return _Running(run, slot, process, lock)


def _locked(folder: Path) -> IO[bytes] | None:
    """The folder's lock; None if somebody has it."""
    file = (folder / LOCK_FILE).open("ab")
    try:
        # Not evaluation.files.lock: a child that is started with the file keeps this one.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _end_with_sweep() -> None:
    """In a launcher's process: it is to end when the sweep is killed (PR_SET_PDEATHSIG)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


def _end_processes(process: subprocess.Popen, asked: bool = False) -> None:
    """End a run's process, its group, and what it started in groups of their own: by SIGTERM, of
    which a second one (`asked`: it had one) would not let the run be saved, and after a minute by
    SIGKILL."""
    started: list[psutil.Process] = []
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process, 0 if asked and number == signal.SIGTERM else number)
        if number == signal.SIGKILL:
            for child in started:
                # psutil knows a process by its start too, so a number that was given anew is safe.
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            if not _signal_group(process, 0) and not any(map(_is_alive, started)):
                return
            time.sleep(0.1)


def _signal_group(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to a run's process group (0: none); False if the group is empty."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _why_failed(log: Path, exit_code: int) -> str:
    """The exit code, and the error that the last start's log ends in."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    own = text.rpartition(f"\n{START_MARK}")[2].splitlines()[1:]
    lines = [line for line in own if line.strip()]
    errors = [line for line in lines if _ERROR.match(line) and not line.startswith(_LAUNCHERS)]
    last = errors[-1:] or lines[-REASON_LINES:]
    return f"exit status {exit_code}, {' '.join(last)[:REASON_CHARACTERS]}"
