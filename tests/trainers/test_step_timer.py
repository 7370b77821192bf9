"""Seconds of the parts of a step, by a clock that the test moves."""

import pytest
import torch

from trl_r1zero.trainers import timing
from trl_r1zero.trainers.timing import StepTimer


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: Clock.now)
    return Clock


@pytest.fixture
def timer() -> StepTimer:
    return StepTimer(torch.device("cpu"))


def test_parts_add_up(timer, clock):
    for seconds in (1.0, 2.5):
        with timer.part("forward"):
            clock.now += seconds
        clock.now += 10.0  # outside of every part
    with timer.part("backward"):
        clock.now += 4.0
    assert timer.collect() == {"forward": 3.5, "backward": 4.0}


def test_a_part_within_a_part_counts_in_both(timer, clock):
    with timer.part("step"):
        clock.now += 1.0
        with timer.part("generation"):
            clock.now += 2.0
    assert timer.collect() == {"step": 3.0, "generation": 2.0}


def test_collect_starts_over(timer, clock):
    with timer.part("step"):
        clock.now += 1.0
    timer.collect()
    assert timer.collect() == {}
    with timer.part("step"):
        clock.now += 0.25
    assert timer.collect() == {"step": 0.25}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_on_a_gpu():
    timer = StepTimer(torch.device("cuda"))
    matrix = torch.ones(4096, 4096, device="cuda")
    with timer.part("step"):
        for _ in range(20):
            with timer.part("product"):
                matrix @ matrix
    seconds = timer.collect()
    assert 0 < seconds["product"] <= seconds["step"]
    assert timer.collect() == {}
