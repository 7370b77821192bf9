"""What recipes say of a task: mistakes end with a message, before anything is loaded."""

import pytest

from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.recipe.trace_arguments import TraceArguments


@pytest.mark.parametrize("arguments", [TaskArguments, TraceArguments])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--reward=r1_zer0", "unknown reward 'r1_zer0'; did you mean 'r1_zero'? "),
        ("--reward=json.loadz", "reward: module 'json' has no name 'loadz'; did you mean 'load'?"),
        ("--reward=no.such.reward", "reward: got 'no.such.reward', but No module named 'no'"),
        ("--task=mat", "unknown task 'mat'; did you mean 'math'?"),
        ("--prompt=r1", "unknown prompt 'r1'"),
        ("--task_args={sed: 1}", "task 'math': unknown task_arg 'sed'"),
        ("--reward_workers=-1", "reward_workers must be at least 0, got -1"),
        ("--reward_deadline_seconds=0", "reward_deadline_seconds must be above 0, got 0.0"),
        ("--reward_deadline_seconds=-2", "must be above 0, got -2.0"),
        ("--reward_deadline_seconds=.nan", "must be above 0, got nan"),
    ],
)
def test_a_recipe_with_a_mistake_ends_with_a_message(arguments, given, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_recipe((arguments,), [given], program="grpo.py")
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("grpo.py: error: ")
    assert message in shown


def test_a_setting_of_the_wrong_type(capsys):
    given = ["--task=countdown", "--task_args={seed: one}"]
    with pytest.raises(SystemExit):
        parse_recipe((TaskArguments,), given, program="grpo.py")
    assert "task 'countdown': seed: got 'one' (str), expected int" in capsys.readouterr().err


def test_what_may_be_left_unset():
    (arguments,) = parse_recipe((TaskArguments,), ["--reward_workers=0"]).instances
    assert (arguments.reward, arguments.reward_workers) == (None, 0)
