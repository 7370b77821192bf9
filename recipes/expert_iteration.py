"""Expert iteration from a recipe.

accelerate launch recipes/expert_iteration.py --config recipes/quickstart/expert_iteration.yaml \
    [--key value ...]
"""

import trl_r1zero
from trl_r1zero.commands.training import TrainingSetup, train


def make_trainer(setup: TrainingSetup) -> "trl_r1zero.ExpertIterationTrainer":
    task = setup.data.load(setup.tokenizer, setup.prompt_rooms())
    return trl_r1zero.ExpertIterationTrainer(
        **setup.trainer_arguments(),
        reward_fn=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        stop=task.prompt.stop,
    )


if __name__ == "__main__":
    train("expert_iteration", __doc__, make_trainer)
