"""One identity of a reward function, however it is called."""

import functools
import subprocess
import sys

import evaluate_rewards
import pytest

from trl_r1zero.rewards import r1_zero_reward_fn, reward_identity


class Scaled:
    def __call__(self, response, truth):
        return {"reward": 1.0}

    def method(self, response, truth):
        return {"reward": 1.0}


@functools.wraps(r1_zero_reward_fn)
def wrapped(response, truth):
    return r1_zero_reward_fn(response, truth)


R1_ZERO = "trl_r1zero.rewards.reward_functions.r1_zero_reward_fn"


@pytest.mark.parametrize(
    ("reward_fn", "identity"),
    [
        (r1_zero_reward_fn, R1_ZERO),
        (wrapped, R1_ZERO),
        (Scaled(), "test_registry.Scaled"),
        (Scaled().method, "test_registry.Scaled.method"),
        (len, "builtins.len"),
        (
            functools.partial(r1_zero_reward_fn, 1, b="x", a=None),
            f"partial({R1_ZERO}, 1, a=None, b='x')",
        ),
        (functools.partial(Scaled(), key=len), "partial(test_registry.Scaled, key=builtins.len)"),
    ],
)
def test_identity(reward_fn, identity):
    assert reward_identity(reward_fn) == identity


def raises(response, truth):
    raise NotImplementedError


def test_modules_and_arguments_tell_functions_apart():
    assert len({reward_identity(function) for function in (evaluate_rewards.raises, raises)}) == 2
    partials = [functools.partial(r1_zero_reward_fn, fast=fast) for fast in (True, False)]
    assert len({reward_identity(function) for function in partials}) == 2


@pytest.mark.parametrize("arguments", [["mine.py"], ["-m", "mine"]])
def test_a_script_that_runs_is_the_module_that_is_imported(arguments, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from trl_r1zero.rewards import reward_identity\n"
        "def reward(response, truth): return {}\n"
        "print(__name__, reward_identity(reward))\n"
        "import mine\n"
    )
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "__main__ mine.reward\nmine mine.reward\n"
