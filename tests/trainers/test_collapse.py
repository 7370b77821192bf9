"""One warning where a run learns nothing more though its numbers are finite."""

import logging
from types import SimpleNamespace

import pytest

from trl_r1zero.trainers.collapse import CollapseCallback

FINE = {"reward": 0.5, "zero_advantage_groups": 0.5, "entropy": 1.0, "truncated": 0.25}


def told(caplog, *lines: dict) -> list[str]:
    callback = CollapseCallback()
    with caplog.at_level(logging.WARNING):
        for step, line in enumerate(lines, start=1):
            state = SimpleNamespace(is_world_process_zero=True, global_step=step)
            callback.on_log(None, state, None, logs=line)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"zero_advantage_groups": 1.0}, "all rollouts of each group have the same reward"),
        ({"entropy": 0.0}, "certain of every token"),
        ({"truncated": 1.0}, "ends at the length limit"),
    ],
)
def test_a_sign_that_lasts_is_told_once_with_its_first_update(caplog, sign, words):
    (message,) = told(caplog, FINE, *[{**FINE, **sign}] * 30)
    assert message.startswith("since update 2, ")
    assert words in message
    assert "Likely causes: " in message


def test_a_sign_that_comes_and_goes_is_none(caplog):
    bad = {**FINE, "truncated": 1.0}
    assert told(caplog, *[*[bad] * 9, FINE] * 3) == []
    assert told(caplog, *[{"nll": 1.0, "entropy": 0.0}] * 30) == []  # no run of rewards
