"""How far a planned run is, as its folder tells, and a record of how its attempts ended."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trl_r1zero.common.run_files import METRICS_FILE, Line, read_metrics
from trl_r1zero.evaluation.files import json_text, read_json, write_atomically

ATTEMPTS_FILE = "attempts.json"
LOG_FILE = "sweep.log"
_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Attempt:
    """One start of a run, at a local time, and its end after so many wall-clock seconds.

    The outcome is `finished`, `failed` (its processes ended with an error), `diverged` or `stopped`
    (with the sweep), and the reason why, if it is not finished. `devices` are the GPUs that it had,
    if the sweep chose them.
    """

    started: str
    seconds: float
    outcome: str
    reason: str = ""
    devices: str = ""


@dataclass(frozen=True)
class RunState:
    """What a folder tells: the status `finished`, `diverged`, `failed`, `stopped` (begun, and not
    at its end) or `missing`; why it failed or diverged; what all its attempts took."""

    status: str
    reason: str = ""
    seconds: float = 0.0


def run_state(folder: Path) -> RunState:
    """The state of a run that is not running."""
    attempts = _attempts(folder)
    seconds = sum(attempt.seconds for attempt in attempts)
    lines = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    if diverged := diverged_at(lines):
        return RunState("diverged", diverged, seconds)
    # The summary of training, and the model that is saved behind it.
    ended = bool(lines) and "train_runtime" in lines[-1]
    if ended and any((folder / "final" / name).is_file() for name in _MODEL_FILES):
        return RunState("finished", "", seconds or lines[-1]["elapsed_seconds"])
    if attempts and attempts[-1].outcome == "failed":
        return RunState("failed", attempts[-1].reason, seconds)
    return RunState("stopped" if lines or attempts else "missing", "", seconds)


def diverged_at(lines: Sequence[Line]) -> str:
    """Where a loss, gradient or weight first is not finite, in words; empty if nowhere: such an
    update leaves no finite weights behind."""
    for line in lines:
        if "diverged" in line:
            return str(line["diverged"])
        for name in ("loss", "grad_norm"):
            value = line.get(name, 0.0)
            if value is None or not math.isfinite(value):  # None stands for it in JSON
                shown = "not finite" if value is None else value
                return f"{name} is {shown} at update {line['step']}"
    return ""


def record(folder: Path, attempt: Attempt) -> None:
    """Add an attempt to the folder's record."""
    attempts = [asdict(one) for one in (*_attempts(folder), attempt)]
    write_atomically(folder / ATTEMPTS_FILE, json_text(attempts))


def _attempts(folder: Path) -> list[Attempt]:
    file = folder / ATTEMPTS_FILE
    if not file.is_file():
        return []
    return [Attempt(**one) for one in read_json(file)]


def now() -> str:
    """Local time with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
