"""The clock: a file that only grows, and what cannot be in it."""

import json
import os
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
    path.parent.mkdir()
    line = {"event": START, "time": time.time() + 3600, "process_started": time.time() + 3600}
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
    started = process_start()
    assert started <= psutil.Process().create_time()
    assert started <= time.time()


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
        ({"again": {"host": "b"}}, "several machines"),
        ({"again": {"from_step": 5}}, "GRPO step 2 comes where step 6 should"),
        ({"finished": {"event": TRAINING_ENDED}}, "does not end with the one end"),
        ({"ended": {"event": FINISHED}}, "does not end with the one end"),
        ({"start": {"from_step": 3}}, "an earlier start is missing"),
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
