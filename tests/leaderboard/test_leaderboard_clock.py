"""The clock: a file that only grows, and that one process at a time can open."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from trl_r1zero.common.folder_lock import FolderInUseError
from trl_r1zero.leaderboard.clock import (
    FINISHED,
    START,
    STEP,
    TRAINING_ENDED,
    VALIDATION,
    Clock,
    process_start,
    seconds_needed,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "clock.jsonl"


def test_it_counts_from_the_first_start_across_restarts(path):
    Clock(path).record(START, process_started=time.time() - 100)
    clock = Clock(path)
    clock.record(START)
    assert [event["event"] for event in Clock(path).events] == [START, START]
    assert 100 <= clock.elapsed < 110
    assert clock.has(START)
    assert not clock.has(FINISHED)


def test_a_line_that_a_kill_cut_off_is_removed(path):
    Clock(path).record(START, process_started=time.time())
    with path.open("a") as file:
        file.write('{"event": "step", "time": 17')
    clock = Clock(path)
    assert len(clock.events) == 1
    clock.record(TRAINING_ENDED)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        START,
        TRAINING_ENDED,
    ]


def test_a_run_that_is_still_running_is_not_started_twice(path):
    code = (
        "import sys; from pathlib import Path; from trl_r1zero.leaderboard.clock import Clock\n"
        "clock = Clock(Path(sys.argv[1])); print(flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        with pytest.raises(FolderInUseError, match="is working in"):
            Clock(path)
    finally:
        other.kill()
        other.communicate()
    Clock(path).record(START, process_started=time.time())


def test_a_process_began_when_the_operating_system_says():
    assert process_start() == psutil.Process().create_time()


def test_the_clock_starts_with_the_launcher(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import subprocess, sys\n"
        "import psutil\n"
        "from trl_r1zero.leaderboard.clock import process_start\n"
        "if '--launch' in sys.argv:\n"
        "    print(psutil.Process().create_time(), flush=True)\n"
        "    subprocess.run([sys.executable, sys.argv[0]], check=True)\n"
        "else:\n"
        "    print(psutil.Process().create_time(), process_start())\n"
    )
    done = subprocess.run(
        [sys.executable, script, "--launch"], capture_output=True, text=True, check=True
    )
    launcher, own, counted = map(float, done.stdout.split())
    assert launcher < own
    assert counted == launcher


# How long what is still to do may take


def test_what_is_still_to_do_is_estimated_from_what_it_took():
    events = [
        {"event": START, "time": 0.0},
        {"event": VALIDATION, "time": 1.0, "seconds": 10.0, "num_problems": 100},
        {"event": VALIDATION, "time": 2.0, "seconds": 20.0, "num_problems": 100},
        {"event": STEP, "time": 3.0, "seconds": 4.0, "pause_seconds": 0.0},
        {"event": STEP, "time": 4.0, "seconds": 2.0, "pause_seconds": 80.0},
    ]
    needed = {
        "a validation": pytest.approx(1.5 * 20.0),
        "another step": pytest.approx(1.5 * 4.0),
        "saving before and after it": pytest.approx(2 * 1.5 * 80.0),
        "the full evaluation": pytest.approx(1.5 * 20.0 / 100 * 1000),
    }
    assert seconds_needed(events, 4000.0, 1000, num_due=100) == needed
    assert seconds_needed(events, 4000.0, 1000, num_due=0) == {**needed, "a validation": 0.0}


def test_of_steps_the_last_twenty_count():
    steps = [{"event": STEP, "seconds": 100.0 - n, "pause_seconds": 0.0} for n in range(30)]
    assert seconds_needed(steps, 1.0, 10, 0)["another step"] == pytest.approx(1.5 * 90.0)


def test_before_a_measurement_shares_of_the_budget_stand_in():
    assert seconds_needed([{"event": START, "time": 0.0}], 1000.0, 5000, num_due=1000) == {
        "a validation": pytest.approx(30),
        "another step": 0,
        "saving before and after it": pytest.approx(20),
        "the full evaluation": pytest.approx(150),
    }
