"""A submission to the leaderboard: GRPO under its rules and clock, and the full evaluation.

accelerate launch leaderboard/run.py --config leaderboard/demo.yaml [--key value ...]

The same command again goes on with a run that was killed; its clock went on meanwhile.
"""

# ruff: noqa: E402

from trl_r1zero.recipe.requirements import check_requirements

check_requirements()  # before the imports that a wrong version would break

from trl import ModelConfig

from trl_r1zero import R1ZeroGRPOConfig
from trl_r1zero.commands.errors import exit_on, stopping_in_words
from trl_r1zero.leaderboard.runner import LeaderboardArguments, run_submission
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.runs.started import WRONG_SETTINGS, training_errors

if __name__ == "__main__":
    with stopping_in_words(), exit_on("run.py", *WRONG_SETTINGS, *training_errors()):
        run_submission(
            parse_recipe(
                (R1ZeroGRPOConfig, TaskArguments, LeaderboardArguments, ModelConfig),
                description=__doc__,
            )
        )
