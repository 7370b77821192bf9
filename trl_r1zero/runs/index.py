"""What there is in a folder of runs: each one's kind, state, progress and results."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trl_r1zero.common.run_files import METRICS_FILE

from .logged_run import LoggedRun
from .run_state import run_state

__all__ = ["IndexedRun", "duration", "find_runs", "index_run"]

# A run is taken to run while its last line of metrics is younger than so many of its longest gap
# between lines, and than these seconds.
GAPS, LEAST_SECONDS = 5.0, 60.0


@dataclass(frozen=True)
class IndexedRun:
    """One run. What it does not tell, such as the accuracy of a run without validation, is None.

    Attributes:
        folder: Its `output_dir`.
        kind: Its method, a key of `METHODS`.
        state: `running`, `finished`, `diverged`, `failed`, `stopped` (begun, and not at its end) or
            `unreadable`; `reason` says why.
        step: Complete steps, of `planned_steps`; `step_name` says what a step is.
        metric: What validation measures: `eval_accuracy`, or `eval_loss`, of which less is better;
            its `last` value, the `best`, and `best_step`.
        seconds: From the start of training to the last line; `seconds_left`: at that pace.
        age_seconds: Since something was written to its metrics.
        size_bytes: Of all its files.
    """

    folder: str
    kind: str | None
    state: str
    reason: str
    step: int | None
    planned_steps: int | None
    step_name: str | None
    metric: str | None
    last: float | None
    best: float | None
    best_step: int | None
    seconds: float | None
    seconds_left: float | None
    age_seconds: float
    size_bytes: int

    def progress(self) -> str:
        """Such as `GRPO step 12/50, accuracy 0.620, 3 min left`; empty before the first step."""
        parts = [f"{self.step_name} {self.step}/{self.planned_steps or '?'}"] if self.step else []
        if self.metric is not None:
            parts.append(f"{self.metric.removeprefix('eval_')} {self.last:.3f}")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def find_runs(folder: str | Path) -> Iterator[Path]:
    """The folders of runs in a folder, at any depth, by name; or the folder itself, if it is one.

    Raises:
        FileNotFoundError: There is no such folder.
    """
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
    age = max(0.0, time.time() - (folder / METRICS_FILE).stat().st_mtime)
    size = _size(folder)
    try:
        run, state = LoggedRun(folder), run_state(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # lines of something else
        reason = f"{folder / METRICS_FILE}: {error}"
        nothing = [None] * 9
        return IndexedRun(str(folder), None, "unreadable", reason, *nothing, age, size)
    kind = run.kind
    step = int(max((line.get(kind.step_key, 0) for line in run.lines), default=0))
    metric = last = best = best_step = None
    if run.validations:
        _, last_line, best_line = run.before_after_best
        metric, best_step = kind.best, int(best_line[kind.step_key])
        last, best = last_line[metric], best_line[metric]
    name = state.status
    if name == "stopped" and age < max(LEAST_SECONDS, GAPS * _longest_gap(run)):
        name = "running"
    left, planned = None, run.planned_steps
    if name == "running" and planned and step > 0:
        left = run.wall_time / step * max(0, planned - step)
    return IndexedRun(
        *(str(folder), kind.method, name, state.reason, step, planned, kind.step_name),
        *(metric, last, best, best_step, run.wall_time, left, age, size),
    )


def _longest_gap(run: LoggedRun) -> float:
    times = [line["elapsed_seconds"] for line in run.lines]
    return max((after - before for before, after in pairwise(times)), default=0)


def _size(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            file = Path(path, name)
            if file.exists():  # a run that runs replaces its checkpoints
                total += file.stat().st_size
    return total


def duration(seconds: float) -> str:
    """A time in its largest unit, such as `3 min` or `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"
