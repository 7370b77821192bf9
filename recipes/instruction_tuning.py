"""Instruction tuning on packed instruction data from a recipe, by transformers' own Trainer.

accelerate launch recipes/instruction_tuning.py \
    --config recipes/llama-3.1-8b/instruction_tuning.yaml [--key value ...]
"""

# ruff: noqa: E402

from trl_r1zero.recipe.requirements import check_requirements

check_requirements()  # before the imports that a wrong version would break

from trl import ModelConfig

from trl_r1zero.commands.training import run
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.instruction_arguments import InstructionArguments
from trl_r1zero.recipe.loading import checkpoint_of, load_model, load_tokenizer
from trl_r1zero.trainers import InstructionTuningConfig, make_instruction_tuning_trainer


def main(recipe: ParsedRecipe) -> None:
    config, data_args, model_args = recipe.instances
    tokenizer = load_tokenizer(model_args)
    checkpoint = checkpoint_of(config)
    is_main = config.process_index == 0
    with config.main_process_first(local=False, desc="tokenisation"):
        train_dataset, eval_dataset = data_args.load(tokenizer, config.seed, is_main)
    if is_main:
        print(
            f"{len(train_dataset):,} chunks of {data_args.seq_length} tokens from "
            f"{train_dataset.num_documents:,} documents"
        )
    trainer = make_instruction_tuning_trainer(
        load_model(model_args),
        config,
        train_dataset,
        eval_dataset,
        processing_class=tokenizer,
    )
    run(trainer, recipe, checkpoint)


if __name__ == "__main__":
    main(
        parse_recipe(
            (InstructionTuningConfig, InstructionArguments, ModelConfig), description=__doc__
        )
    )
