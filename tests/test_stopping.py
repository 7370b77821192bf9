"""Ends by a signal, and by the end of a launcher, of small programs."""

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from trl_r1zero.commands.errors import stopping_in_words
from trl_r1zero.common.stopping import RunStopped, StopSignals, end_with_launcher
end_with_launcher()
print("ready", flush=True)
if sys.argv[-1] == "idle":
    with stopping_in_words("--resume_from_checkpoint", "auto"):
        time.sleep(60)
with StopSignals() as signals:
    while not signals.number:
        time.sleep(0.05)
    signals.handled = True
    print("saving", flush=True)
    time.sleep(float(sys.argv[-1]))
    print("saved", flush=True)
    raise RunStopped(signals.number)
"""
LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[2:]]).wait()
"""
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def program(tmp_path):
    """Starts PROGRAM with an argument, by itself or below a launcher, and waits until it is up."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "accelerate").write_text(LAUNCHER)
    started = []

    def start(argument: str, launched: bool = False) -> subprocess.Popen:
        launcher = [str(tmp_path / "accelerate"), "launch"] if launched else []
        command = [sys.executable, *launcher, str(tmp_path / "program.py"), argument]
        started.append(subprocess.Popen(command, **PIPES, start_new_session=True))
        assert started[-1].stdout.readline() == "ready\n"
        time.sleep(0.2)
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_a_request_and_the_second_an_end(program, number):
    process = program("0")
    process.send_signal(number)
    assert process.communicate()[0] == "saving\nsaved\n"
    assert process.returncode == 128 + number
    process = program("60")
    process.send_signal(number)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(number)
    assert process.communicate(timeout=5)[0] == ""
    assert process.returncode == -number


def test_where_nothing_is_to_be_saved_a_line_says_how_to_go_on(program):
    process = program("idle")
    process.send_signal(signal.SIGTERM)
    told = process.communicate()[1]
    assert process.returncode == 143
    assert told.startswith("\nStopped by SIGTERM; go on with: ")
    assert told.endswith("program.py idle --resume_from_checkpoint auto\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_a_launcher_is_a_request_too(program, number):
    process = program("0.1", launched=True)
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "saving\nsaved\n"


def test_ctrl_c_for_launcher_and_program_is_one_request(program):
    """The launcher dies of it at once, which is no second signal."""
    process = program("1.5", launched=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "saving\nsaved\n"
