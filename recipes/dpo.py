"""Direct preference optimisation (DPO) on Anthropic's HH pairs from a recipe.

accelerate launch recipes/dpo.py --config recipes/llama-3.1-8b/dpo.yaml [--key value ...]
"""

# ruff: noqa: E402

from trl_r1zero.recipe.requirements import check_requirements

check_requirements()  # before the imports that a wrong version would break

from trl import ModelConfig

from trl_r1zero import R1ZeroDPOConfig, R1ZeroDPOTrainer
from trl_r1zero.commands.training import run
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.loading import checkpoint_of, load_tokenizer, model_settings
from trl_r1zero.recipe.preference_arguments import PreferenceArguments


def main(recipe: ParsedRecipe) -> None:
    config, preference_args, model_args = recipe.instances
    tokenizer = load_tokenizer(model_args)
    checkpoint = checkpoint_of(config)
    train_dataset, eval_dataset = preference_args.load()
    trainer = R1ZeroDPOTrainer(
        **model_settings(config, model_args),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    run(trainer, recipe, checkpoint)


if __name__ == "__main__":
    main(parse_recipe((R1ZeroDPOConfig, PreferenceArguments, ModelConfig), description=__doc__))
