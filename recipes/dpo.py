"""Direct preference optimisation (DPO) on Anthropic's HH pairs from a recipe.

accelerate launch recipes/dpo.py --config recipes/llama-3.1-8b/dpo.yaml [--key value ...]
"""

import trl_r1zero
from trl_r1zero.commands.training import TrainingSetup, train


def make_trainer(setup: TrainingSetup) -> "trl_r1zero.R1ZeroDPOTrainer":
    train_dataset, eval_dataset = setup.data.load()
    return trl_r1zero.R1ZeroDPOTrainer(
        **setup.trainer_arguments(), train_dataset=train_dataset, eval_dataset=eval_dataset
    )


if __name__ == "__main__":
    train("dpo", __doc__, make_trainer)
