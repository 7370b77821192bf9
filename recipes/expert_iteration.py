"""Expert iteration from a recipe.

accelerate launch recipes/expert_iteration.py --config recipes/quickstart/expert_iteration.yaml \
    [--key value ...]
"""

# ruff: noqa: E402

from trl_r1zero.recipe.requirements import check_requirements

check_requirements()  # before the imports that a wrong version would break

from trl import ModelConfig

from trl_r1zero import ExpertIterationConfig, ExpertIterationTrainer
from trl_r1zero.commands.training import run
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.loading import checkpoint_of, load_tokenizer, model_settings
from trl_r1zero.recipe.task_arguments import TaskArguments


def main(recipe: ParsedRecipe) -> None:
    config, task_args, model_args = recipe.instances
    tokenizer = load_tokenizer(model_args)
    checkpoint = checkpoint_of(config)
    task = task_args.load()
    trainer = ExpertIterationTrainer(
        **model_settings(config, model_args),
        reward_fn=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=tokenizer,
        stop=task.prompt.stop,
    )
    run(trainer, recipe, checkpoint)


if __name__ == "__main__":
    main(parse_recipe((ExpertIterationConfig, TaskArguments, ModelConfig), description=__doc__))
