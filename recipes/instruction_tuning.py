"""Instruction tuning on packed instruction data from a recipe, by transformers' own Trainer.

accelerate launch recipes/instruction_tuning.py \
    --config recipes/llama-3.1-8b/instruction_tuning.yaml [--key value ...]
"""

from typing import Any

import trl_r1zero
from trl_r1zero.commands.training import TrainingSetup, train


def make_trainer(setup: TrainingSetup) -> Any:
    from trl_r1zero.recipe.loading import load_model

    config, data = setup.config, setup.data
    is_main = config.process_index == 0
    with config.main_process_first(local=False, desc="tokenisation"):
        train_dataset, eval_dataset = data.load(setup.tokenizer, config.seed, is_main)
    if is_main:
        print(
            f"{len(train_dataset):,} chunks of {data.seq_length} tokens from "
            f"{train_dataset.num_documents:,} documents"
        )
    return trl_r1zero.make_instruction_tuning_trainer(
        load_model(setup.model),
        config,
        train_dataset,
        eval_dataset,
        processing_class=setup.tokenizer,
    )


if __name__ == "__main__":
    train("instruction_tuning", __doc__, make_trainer)
