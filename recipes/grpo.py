"""GRPO from a recipe.

accelerate launch recipes/grpo.py --config recipes/quickstart/grpo.yaml [--key value ...]
"""

import trl_r1zero
from trl_r1zero.commands.training import TrainingSetup, train


def make_trainer(setup: TrainingSetup) -> "trl_r1zero.R1ZeroGRPOTrainer":
    task = setup.data.load(setup.tokenizer, setup.prompt_rooms())
    return trl_r1zero.R1ZeroGRPOTrainer(
        **setup.trainer_arguments(),
        reward_funcs=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        stop=task.prompt.stop,
    )


if __name__ == "__main__":
    train("grpo", __doc__, make_trainer)
