"""Parts of the GPU check: a process for each, with a time limit, and nothing left of it."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PASSED, FAILED, SKIPPED, TIMED_OUT = "passed", "failed", "skipped", "timed_out"
# What a part writes as it goes, in a folder of its own: status, summary, figures, reason.
STATE_FILE = "state.json"
LOG_FILE = "log.txt"
# A part with less time than this is not begun.
LEAST_SECONDS = 5.0
# From linux/prctl.h: a signal for a process whose parent is gone; and that orphans below a process
# come to it, not to the first process.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOG_TAIL = 600


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: What `--only` calls it.
        title: What it finds out.
        command: The process that does it. It keeps `STATE_FILE` in its folder up to date
            (`check_setup.Recorder`), and ends with status 0.
        limit_seconds: It is killed then, with its children.
        skip_reason: Why it cannot run here; None if it can.
    """

    name: str
    title: str
    command: Sequence[str]
    limit_seconds: float
    skip_reason: str | None = None


@dataclass(frozen=True)
class PartResult:
    """How a part went.

    Attributes:
        name, title: The part's.
        status: passed, failed, skipped or timed_out.
        seconds, limit_seconds: It took, and was allowed; 0 if it was not begun.
        summary: The figures that matter, in words.
        figures: All of them, those of a part that failed too.
        reason: Why it did not pass; empty if it did.
    """

    name: str
    title: str
    status: str
    seconds: float = 0.0
    limit_seconds: float = 0.0
    summary: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    *,
    total_seconds: float | None = None,
    on_result: Callable[[PartResult], None] = lambda result: None,
    environment: Mapping[str, str] | None = None,
) -> list[PartResult]:
    """Run the parts one after the other; what becomes of one does not stop the next.

    Args:
        parts: In order.
        folder: A part's state and log are in `folder/NAME`.
        total_seconds: For all of them; None for no limit besides their own.
        on_result: Called after each part.
        environment: Of the processes; by default this one's.
    """
    begun = time.monotonic()
    results = []
    for part in parts:
        limit = seconds_allowed(part.limit_seconds, time.monotonic() - begun, total_seconds)
        reason = part.skip_reason
        if reason is None and limit < LEAST_SECONDS < part.limit_seconds:
            reason = f"no time is left of the {total_seconds:g} s that all parts have together"
        if reason is not None:
            result = PartResult(part.name, part.title, SKIPPED, reason=reason)
        else:
            result = _run_part(part, folder / part.name, limit, environment)
        results.append(result)
        on_result(result)
    return results


def seconds_allowed(limit: float, elapsed: float, total: float | None) -> float:
    """What a part may take: its own limit, or what is left for all parts if that is less."""
    return limit if total is None else max(0.0, min(limit, total - elapsed))


def _run_part(
    part: Part, folder: Path, limit: float, environment: Mapping[str, str] | None
) -> PartResult:
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with (folder / LOG_FILE).open("wb") as log:
        code = run_limited(part.command, limit, log, environment)
    seconds = time.monotonic() - begun
    state: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    status, reason = _judge(code, state, limit, folder / LOG_FILE)
    return PartResult(
        part.name,
        part.title,
        status,
        round(seconds, 2),
        round(limit, 2),
        state.get("summary", ""),
        state.get("figures", {}),
        reason,
    )


def _judge(code: int | None, state: Mapping[str, Any], limit: float, log: Path) -> tuple[str, str]:
    """Status and reason, from the exit status (None: it was too late) and what the part says."""
    where = f"{log.parent.name}/{log.name}"
    if code is None:
        doing = f" while {state['doing']}" if state.get("doing") else ""
        return TIMED_OUT, f"not done after {limit:.0f} s{doing} (log: {where})"
    if code == 0 and state.get("status") in (PASSED, SKIPPED):
        return str(state["status"]), str(state.get("reason", ""))
    reason = state.get("reason")
    if not reason:
        ended = f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
        tail = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        reason = f"{ended}; its last words: {tail or 'none'}"
    return FAILED, f"{reason} (log: {where})"


def run_limited(
    command: Sequence[str],
    limit_seconds: float,
    log: Any,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a command and leave none of its descendants, in whatever sessions they are.

    Returns:
        Its exit status, negative after a signal; None if it was killed at its limit.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = set(_descendants(os.getpid()))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=None if environment is None else dict(environment),
    )
    try:
        return process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill_tree(process)
        _kill_orphans(before)


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGSTOP)  # it starts no further ones meanwhile
        for one in _descendants(process.pid):
            _kill(one)
        process.kill()
        process.wait()


def _kill_orphans(before: set[psutil.Process], seconds: float = 10.0) -> None:
    """Kill what came to this process when its parent ended, until there is none left."""
    deadline = time.monotonic() + seconds
    while left := [one for one in _descendants(os.getpid()) if one not in before]:
        for one in left:
            _kill(one)
        psutil.wait_procs(left, timeout=1.0)
        if time.monotonic() > deadline:
            print(f"processes that do not end: {left}", file=sys.stderr)
            return


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def die_with_parent() -> None:
    """For a part's process: kill -9 of the check leaves no part behind."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
