"""The wall clock of a submission: one line for each thing that happened, never taken back.

`clock.jsonl` begins with the first start; every restart adds a line, so the time between is
counted too, and goes on from a step that the clock has seen. The clock counts from the moment the
operating system started the first process (the launcher, where that is the run's parent) to the end
of the full evaluation: the weights are not used after that.

Times are seconds since 1970 (`time.time()`), not those of a monotonic clock, which a restart of
the machine would set back to 0.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from trl_r1zero.evaluation.files import json_line, whole_lines

CLOCK_FILE = "clock.jsonl"
# psutil knows when a process started by the machine's boot time, which has whole seconds.
TOLERANCE_SECONDS = 2.0
# A step's line of metrics is written after its event, and training starts after the process.
_LOGGING_SECONDS = 5.0
# So long a run that is being killed may go on beside the one that follows it.
_OVERLAP_SECONDS = 10.0

# What a line is about.
START = "start"  # of a process: the first one, or one that goes on
STEP = "step"  # a GRPO step is complete
VALIDATION = "validation"  # one while training
TRAINING_ENDED = "training_ended"  # the last weights are there, and saved
FINISHED = "finished"  # the full evaluation of the last weights is complete
EVENTS = (START, STEP, VALIDATION, TRAINING_ENDED, FINISHED)
# What all starts of a run have in common, and what it is called.
SAME = {
    "host": "machine, whose clock may differ",
    "inputs": "weights, data, prompt or reward",
    "num_processes": "number of processes",
}

Event = dict[str, Any]


class ClockError(ValueError):
    """A clock that cannot be right."""


class Clock:
    """The events of a submission so far.

    Args:
        path: The file. It is made by `start`.

    Attributes:
        events: What the file holds; a line that a kill cut off is removed.

    Raises:
        ClockError: A line is no event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        if path.is_file():
            with path.open("a+b") as file:
                self.events = parse_events(path, whole_lines(file))

    def start(self, process_started: float, from_step: int, **facts: Any) -> None:
        """Record that a process has started: the first one, or one that goes on.

        Args:
            process_started: When it did; see `process_start`.
            from_step: GRPO steps that are done.
            facts: Further keys of the line; a later start has those of `SAME` as the first one.

        Raises:
            ClockError: The run cannot go on so: `clock_faults` would name this start, or the run
                that it goes on from is still at work.
        """
        line = {
            "process_started": round(process_started, 3),
            "host": hashlib.sha256(platform.node().encode()).hexdigest()[:12],
            "pid": os.getpid(),
            "from_step": from_step,
            **facts,
        }
        started = [event for event in self.events if event["event"] == START]
        if started:
            self._require_ended(started[-1])
        for fault in start_faults(self.events, line):
            raise ClockError(
                f"this run cannot go on with {self.path}: {fault}. Its submission would count for "
                "nothing; go on as it was started, or choose another --output_dir"
            )
        self.record(START, **line)

    def _require_ended(self, start: Event) -> None:
        """Wait for a run that is being killed.

        Raises:
            ClockError: It is still at work after `_OVERLAP_SECONDS`.
        """
        deadline = time.monotonic() + _OVERLAP_SECONDS
        while _is_alive(start):
            if time.monotonic() > deadline:
                raise ClockError(
                    f"process {start['pid']} is at work on {self.path.parent}; wait for its end, "
                    "or end it, and start the same command again"
                )
            time.sleep(0.2)

    def record(self, event: str, **facts: Any) -> None:
        """Write a line, which is on the disk when this returns.

        Raises:
            ClockError: The machine's clock was set back since the line before.
        """
        now = round(time.time(), 3)
        if self.events and now < self.events[-1]["time"] - TOLERANCE_SECONDS:
            raise ClockError(
                f"the machine's clock was set back by {self.events[-1]['time'] - now:.1f} seconds "
                f"since the last line of {self.path}, so the time used is not known; set it right, "
                "and start the same command again"
            )
        line = {"event": event, "time": now, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json_line(line))
            file.flush()
            os.fsync(file.fileno())
        self.events.append(line)

    def has(self, event: str) -> bool:
        return any(line["event"] == event for line in self.events)

    @property
    def elapsed(self) -> float:
        """Seconds since the first start, now."""
        return time.time() - clock_start(self.events)


def parse_events(path: Path, lines: Sequence[bytes | str]) -> list[Event]:
    """The events of a file.

    Raises:
        ClockError: A line is no event.
    """
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            known = event["event"] in EVENTS and isinstance(event["time"], int | float)
            known = known and (event["event"] != START or "process_started" in event)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ClockError(
                f"{path}:{number}: got {line[:80]!r}, expected an event of a clock; a clock that "
                "was changed by hand counts for nothing"
            )
        events.append(event)
    return events


def clock_start(events: Sequence[Event]) -> float:
    """When the clock began to count."""
    return float(events[0]["process_started"])


def process_start(launcher: bool) -> float:
    """When this process began, or the launcher that started it with the same script.

    Args:
        launcher: Whether the launcher counts: for a run's first start. It may outlive a run that it
            starts again, and is then no sign of when that one began.

    A shell in between does not count: its command line is not the script's.
    """
    process = psutil.Process()
    started = [process.create_time(), time.time()]
    script = sys.argv[0]
    for parent in process.parents() if launcher else ():
        try:
            if script not in parent.cmdline()[1:]:
                break
            started.append(parent.create_time())
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            break  # somebody else's, or gone: none that launched this one
    return min(started)


def _is_alive(start: Event) -> bool:
    """Whether the process of a start is there, and no later one that got its number."""
    if start["pid"] == os.getpid():  # as in a container that was started again
        return False
    try:
        process = psutil.Process(start["pid"])
        began_before = process.create_time() < start["time"] + TOLERANCE_SECONDS
        return began_before and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_faults(events: Sequence[Event], start: Mapping[str, Any]) -> list[str]:
    """Why a start cannot follow what the clock has, in words: an empty list, if it can.

    Args:
        events: Before the start.
        start: Its keys.
    """
    faults = []
    steps = {0} | {event["grpo_step"] for event in events if event["event"] == STEP}
    if start["from_step"] not in steps:
        faults.append(
            f"it goes on from GRPO step {start['from_step']}, which the clock has not seen"
        )
    first = next((event for event in events if event["event"] == START), start)
    for key, what in SAME.items():
        if start.get(key) != first.get(key):
            faults.append(f"not all starts have the same {what}")
    return faults


def clock_faults(events: Sequence[Event], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """What cannot be, in words: an empty list, if the clock tells one story.

    Args:
        events: Of the clock.
        metrics: The lines of `metrics.jsonl`, whose seconds the run counted by another clock.
    """
    if not events or events[0]["event"] != START:
        return ["it does not begin with a start"]
    faults = []
    for number, event in enumerate(events):
        if event["event"] == START:
            faults += start_faults(events[:number], event)
    for before, after in pairwise(events):
        if after["time"] < before["time"] - TOLERANCE_SECONDS:
            faults.append(f"{after['event']} is before the {before['event']} that it follows")
        if after["event"] == START and after["process_started"] < before["time"] - _OVERLAP_SECONDS:
            faults.append("a second run was at work beside the first")
    for event in events:
        if event["event"] == START and event["process_started"] > event["time"]:
            faults.append("a process started after its first line")
    faults += _step_faults(events)
    if [event["event"] for event in events].count(FINISHED) != 1 or (
        events[-1]["event"] != FINISHED
    ):
        faults.append("it does not end with the one end of the full evaluation")
    return faults + _metrics_faults(events, metrics)


def _step_faults(events: Sequence[Event]) -> list[str]:
    done = 0
    for event in events:
        if event["event"] == START:
            done = event["from_step"]
        elif event["event"] == STEP:
            if event["grpo_step"] != done + 1:
                return [f"GRPO step {event['grpo_step']} comes where step {done + 1} should"]
            done = event["grpo_step"]
        elif event["grpo_step"] != done:
            return [f"{event['event']} is of GRPO step {event['grpo_step']}, after step {done}"]
    return []


def _metrics_faults(events: Sequence[Event], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Training cannot have taken longer by the metrics than by the clock."""
    ended = {
        event["grpo_step"]: event["time"] - clock_start(events)
        for event in events
        if event["event"] == STEP
    }
    lines = [line for line in metrics if "loss" in line and "grpo_step" in line]
    if ended and not lines:
        return ["the metrics have no GRPO step, and the clock has some"]
    numbers = [line["step"] for line in metrics]
    if numbers != sorted(numbers):
        return ["the metrics go backwards"]
    for line in lines:
        step, seconds = line["grpo_step"], line["elapsed_seconds"]
        if step not in ended:
            return [f"the metrics have GRPO step {step}, and the clock has not"]
        if seconds > ended[step] + _LOGGING_SECONDS:
            return [
                f"GRPO step {step} ended {seconds:.0f} seconds after the start of training by the "
                f"metrics, and {ended[step]:.0f} after that of the process by the clock"
            ]
    return []
