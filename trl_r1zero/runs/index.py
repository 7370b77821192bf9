"""What there is in a folder of runs: each one's kind, state, progress and results."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trl_r1zero.common.folder_lock import in_use
from trl_r1zero.common.run_files import METRICS_FILE, Line, read_metrics
from trl_r1zero.evaluation.files import json_text, read_json, write_atomically

from .logged_run import LoggedRun


@dataclass(frozen=True)
class IndexedRun:
    """One run. What it does not tell, such as the accuracy of a run without validation, is None."""

    folder: str  # its `output_dir`
    # `running` (a process has the folder), `finished`, `diverged`, `failed`, `stopped` (begun, and
    # not at its end) or `unreadable`; `reason` says why.
    state: str
    reason: str
    age_seconds: float  # since something was written to its metrics
    size_bytes: int  # of all its files
    kind: str | None = None  # its method, a key of `METHODS`
    step: int | None = None  # complete steps, of `planned_steps`; `step_name` says what a step is
    planned_steps: int | None = None
    step_name: str | None = None
    # What validation measures: `eval_accuracy`, or `eval_loss`, of which less is better; its `last`
    # value, the `best`, and `best_step`.
    metric: str | None = None
    last: float | None = None
    best: float | None = None
    best_step: int | None = None
    # From the start of training to the last line; `seconds_left`: at that pace.
    seconds: float | None = None
    seconds_left: float | None = None

    def progress(self) -> str:
        """Such as `GRPO step 12/50, accuracy 0.620, 3 min left`; empty before the first step."""
        parts = [f"{self.step_name} {self.step}/{self.planned_steps or '?'}"] if self.step else []
        if self.metric is not None:
            parts.append(f"{self.metric.removeprefix('eval_')} {self.last:.3f}")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def find_runs(folder: str | Path) -> Iterator[Path]:
    """The folders of runs in a folder, at any depth, by name; or the folder itself, if it is one. A
    FileNotFoundError if there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with runs in it")
    for path, folders, files in os.walk(folder):
        folders.sort()
        if METRICS_FILE in files:
            folders.clear()  # a run has no runs within it
            yield Path(path)


def index_run(folder: Path) -> IndexedRun:
    """A run's line of the index. A run that cannot be read has the reason in it."""
    try:
        return index_logged_run(LoggedRun(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # lines of something else
        reason = f"{folder / METRICS_FILE}: {error}"
        return IndexedRun(str(folder), "unreadable", reason, _age(folder), _size(folder))


def index_logged_run(run: LoggedRun) -> IndexedRun:
    """The index's line of a run that is read already."""
    kind, state = run.kind, run_state(run.folder)
    step = int(max((line.get(kind.step_key, 0) for line in run.lines), default=0))
    metric = last = best = best_step = None
    if run.validations:
        _, last_line, best_line = run.before_after_best
        metric, best_step = kind.best, int(best_line[kind.step_key])
        last, best = last_line[metric], best_line[metric]
    name = "running" if state.status == "stopped" and in_use(run.folder) else state.status
    left, planned = None, run.planned_steps
    if name == "running" and planned and step > 0:
        left = run.wall_time / step * max(0, planned - step)
    return IndexedRun(
        folder=str(run.folder),
        state=name,
        reason=state.reason,
        age_seconds=_age(run.folder),
        size_bytes=_size(run.folder),
        kind=kind.method,
        step=step,
        planned_steps=planned,
        step_name=kind.step_name,
        metric=metric,
        last=last,
        best=best,
        best_step=best_step,
        seconds=run.wall_time,
        seconds_left=left,
    )


def _age(folder: Path) -> float:
    return max(0.0, time.time() - (folder / METRICS_FILE).stat().st_mtime)


def _size(folder: Path) -> int:
    files = (Path(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())  # checkpoints are replaced


def duration(seconds: float) -> str:
    """A time in its largest unit, such as `3 min` or `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


# How far a run is

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
    return [Attempt(**one) for one in read_json(file)] if file.is_file() else []


def now() -> str:
    """Local time with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
