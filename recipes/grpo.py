"""GRPO from a recipe.

accelerate launch recipes/grpo.py --config recipes/quickstart/grpo.yaml [--key value ...]
"""

# ruff: noqa: E402

from pathlib import Path

from trl_r1zero.requirements import check_model_path, check_requirements

check_requirements()  # before the imports that a wrong version would break

from transformers import AutoTokenizer
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.report import write_report
from trl_r1zero.task_arguments import TaskArguments
from trl_r1zero.trainers.run_folder import checkpoint_to_resume


def main(recipe: ParsedRecipe) -> None:
    config, task_args, model_args = recipe.instances
    check_model_path(model_args.model_name_or_path)
    checkpoint = checkpoint_to_resume(config.output_dir, config.resume_from_checkpoint)
    task = task_args.load()
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
    )
    config.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(config.model_init_kwargs or {}),
    }
    trainer = R1ZeroGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=task.reward,
        args=config,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=tokenizer,
        stop=task.prompt.stop,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    if trainer.accelerator.is_main_process:
        recipe.write(Path(config.output_dir, "recipe.yaml"))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(Path(config.output_dir, "final")))
    if trainer.accelerator.is_main_process:
        print(write_report(config.output_dir))


if __name__ == "__main__":
    main(parse_recipe((R1ZeroGRPOConfig, TaskArguments, ModelConfig), description=__doc__))
