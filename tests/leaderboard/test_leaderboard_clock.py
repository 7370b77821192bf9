"""The clock: a file that only grows, and what cannot be in it."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from trl_r1zero.leaderboard.clock import (
    FINISHED,
    START,
    STEP,
    TRAINING_ENDED,
    Clock,
    ClockError,
    clock_faults,
    clock_start,
    process_start,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "clock.jsonl"


def test_it_counts_from_the_first_start_across_restarts(path):
    Clock(path).start(time.time() - 100, from_step=0)
    clock = Clock(path)
    clock.start(time.time(), from_step=0)
    assert [event["event"] for event in Clock(path).events] == [START, START]
    assert 100 <= clock.elapsed < 110
    assert clock.has(START)
    assert not clock.has(FINISHED)


def test_it_keeps_no_name_of_the_machine(path):
    clock = Clock(path)
    clock.start(time.time(), from_step=0)
    assert os.uname().nodename not in path.read_text()
    assert len(clock.events[0]["host"]) == 12


def test_a_line_that_a_kill_cut_off_is_removed(path):
    Clock(path).start(time.time(), from_step=0)
    with path.open("a") as file:
        file.write('{"event": "step", "time": 17')
    clock = Clock(path)
    assert len(clock.events) == 1
    clock.record(TRAINING_ENDED)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        START,
        TRAINING_ENDED,
    ]


def test_a_machine_whose_clock_was_set_back_is_an_error(path):
    Clock(path).start(time.time(), from_step=0)
    line = {**json.loads(path.read_text()), "time": time.time() + 3600}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ClockError, match="set back by 3"):
        Clock(path).start(time.time(), from_step=0)


@pytest.mark.parametrize(
    "line", ["nonsense", '{"event": "lunch", "time": 1.0}', '{"event": "start", "time": 1.0}', "[]"]
)
def test_a_line_that_is_no_event_is_an_error(path, line):
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(ClockError, match=r"clock\.jsonl:1"):
        Clock(path)


def test_a_process_began_when_the_operating_system_says():
    assert process_start(launcher=False) == psutil.Process().create_time()


def test_a_launcher_counts_for_the_first_start_only(tmp_path):
    """It may outlive the run, and start it again, as `accelerate launch --max_restarts` does."""
    script = tmp_path / "run.py"
    script.write_text(
        "import subprocess, sys\n"
        "import psutil\n"
        "from trl_r1zero.leaderboard.clock import process_start\n"
        "if '--launch' in sys.argv:\n"
        "    print(psutil.Process().create_time(), flush=True)\n"
        "    subprocess.run([sys.executable, sys.argv[0]], check=True)\n"
        "else:\n"
        "    own = psutil.Process().create_time()\n"
        "    print(own, process_start(launcher=True), process_start(launcher=False))\n"
    )
    done = subprocess.run(
        [sys.executable, script, "--launch"], capture_output=True, text=True, check=True
    )
    launcher, own, first, later = map(float, done.stdout.split())
    assert launcher < own
    assert (first, later) == (launcher, own)


def a_start(path, **changes):
    """The clock of a run that ended after its second step, as another process may have left it."""
    clock = Clock(path)
    clock.start(time.time() - 100, from_step=0, inputs="i", num_processes=1)
    for step in (1, 2):
        clock.record(STEP, grpo_step=step)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0].update(changes)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Clock(path)


@pytest.mark.parametrize("from_step", [0, 1, 2])
def test_a_run_goes_on_from_a_step_that_the_clock_has_seen(path, from_step):
    clock = a_start(path)
    clock.start(time.time(), from_step=from_step, inputs="i", num_processes=1)
    assert clock.events[-1]["from_step"] == from_step


@pytest.mark.parametrize(
    ("changes", "start", "fault"),
    [
        ({}, {"from_step": 110}, "GRPO step 110, which the clock has not seen"),
        ({}, {"inputs": "j"}, "the same weights, data, prompt or reward"),
        ({}, {"num_processes": 8}, "the same number of processes"),
        ({"host": "b"}, {}, "the same machine"),
    ],
)
def test_a_start_that_would_not_count_is_an_error_before_it(path, changes, start, fault):
    clock = a_start(path, **changes)
    before = path.read_bytes()
    with pytest.raises(ClockError, match=fault):
        clock.start(time.time(), **{"from_step": 2, "inputs": "i", "num_processes": 1, **start})
    assert path.read_bytes() == before


def test_a_run_that_is_still_at_work_is_not_started_twice(path, monkeypatch):
    monkeypatch.setattr("trl_r1zero.leaderboard.clock._OVERLAP_SECONDS", 0.5)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        clock = a_start(path, pid=other.pid)
        with pytest.raises(ClockError, match=f"process {other.pid} is at work"):
            clock.start(time.time(), from_step=2, inputs="i", num_processes=1)
    finally:
        other.kill()
        other.wait()
    clock.start(time.time(), from_step=2, inputs="i", num_processes=1)


def test_a_later_process_of_the_same_number_is_another_one(path):
    """Process numbers come again; the run's own process began before its line."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        began = psutil.Process(other.pid).create_time()
        clock = a_start(path, pid=other.pid, time=began - 60, process_started=began - 60)
        clock.start(time.time(), from_step=2, inputs="i", num_processes=1)
    finally:
        other.kill()
        other.wait()


# What cannot be


def story(**changes):
    """The events of two GRPO steps from second 1000 on, with changes by name, and the metrics."""
    events = {
        "start": {"event": START, "time": 1010.0, "process_started": 1000.0, "host": "a"},
        "first": {"event": STEP, "time": 1020.0, "grpo_step": 1},
        "again": {"event": START, "time": 1050.0, "process_started": 1040.0, "host": "a"},
        "second": {"event": STEP, "time": 1060.0, "grpo_step": 2},
        "ended": {"event": TRAINING_ENDED, "time": 1061.0, "grpo_step": 2},
        "finished": {"event": FINISHED, "time": 1070.0, "grpo_step": 2},
    }
    events["start"]["from_step"], events["again"]["from_step"] = 0, 1
    for name, change in changes.items():
        events[name].update(change)
    metrics = [
        {"step": 1, "grpo_step": 1, "loss": 0.0, "elapsed_seconds": 9.0},
        {"step": 2, "grpo_step": 2, "loss": 0.0, "elapsed_seconds": 20.0},
    ]
    return list(events.values()), metrics


def test_a_story_that_can_be_has_no_faults():
    events, metrics = story()
    assert clock_faults(events, metrics) == []
    assert clock_start(events) == 1000.0


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"second": {"time": 1030.0}}, "step is before the start that it follows"),
        ({"start": {"process_started": 1015.0}}, "started after its first line"),
        ({"start": {"process_started": 1030.0, "time": 1040.0}}, "step is before the start"),
        ({"again": {"process_started": 1001.0}}, "a second run was at work"),
        ({"again": {"host": "b"}}, "not all starts have the same machine"),
        ({"again": {"num_processes": 2}}, "not all starts have the same number of processes"),
        ({"again": {"from_step": 5}}, "from GRPO step 5, which the clock has not seen"),
        ({"again": {"from_step": 0}}, "GRPO step 2 comes where step 1 should"),
        ({"finished": {"grpo_step": 1}}, "finished is of GRPO step 1, after step 2"),
        ({"finished": {"event": TRAINING_ENDED}}, "does not end with the one end"),
        ({"ended": {"event": FINISHED}}, "does not end with the one end"),
        ({"start": {"from_step": 3}}, "from GRPO step 3, which the clock has not seen"),
        ({"start": {"event": TRAINING_ENDED}}, "does not begin with a start"),
    ],
)
def test_a_story_that_cannot_be_is_named(changes, fault):
    events, metrics = story(**changes)
    assert any(fault in found for found in clock_faults(events, metrics)), clock_faults(
        events, metrics
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: lines.reverse(), "go backwards"),
        (lambda lines: lines[1].update(elapsed_seconds=900.0), "900 seconds after the start"),
        (lambda lines: lines[1].update(grpo_step=7), "GRPO step 7, and the clock has not"),
        (lambda lines: lines.clear(), "the metrics have no GRPO step"),
    ],
)
def test_metrics_that_do_not_fit_the_clock_are_named(change, fault):
    events, metrics = story()
    change(metrics)
    (found,) = clock_faults(events, metrics)
    assert fault in found
