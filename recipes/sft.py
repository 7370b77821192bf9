"""Supervised fine-tuning on reasoning traces from a recipe.

accelerate launch recipes/sft.py --config recipes/quickstart/sft.yaml [--key value ...]
"""

# ruff: noqa: E402

import json
from pathlib import Path

from trl_r1zero.recipe.requirements import check_requirements

check_requirements()  # before the imports that a wrong version would break

from trl import ModelConfig

from trl_r1zero import R1ZeroSFTConfig, R1ZeroSFTTrainer
from trl_r1zero.commands.training import run
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.loading import checkpoint_of, load_tokenizer, model_settings
from trl_r1zero.recipe.trace_arguments import LoadedTraces, TraceArguments


def main(recipe: ParsedRecipe) -> None:
    config, trace_args, model_args = recipe.instances
    tokenizer = load_tokenizer(model_args)
    checkpoint = checkpoint_of(config)
    max_length = config.max_length
    if max_length is not None and config.append_eos:
        max_length -= 1
    traces = trace_args.load_traces(tokenizer, max_length)
    if config.process_index == 0:
        report_data(traces, Path(config.output_dir))
    trainer = R1ZeroSFTTrainer(
        **model_settings(config, model_args),
        reward_fn=traces.reward,
        train_dataset=traces.train_dataset,
        eval_dataset=traces.eval_dataset,
        processing_class=tokenizer,
        stop=traces.prompt.stop,
    )
    run(trainer, recipe, checkpoint)


def report_data(traces: LoadedTraces, folder: Path) -> None:
    """Print what the data doctor says, and write it beside the run."""
    text = traces.to_text()
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_report.md").write_text(f"```text\n{text}\n```\n", encoding="utf-8")
    facts = {"sizes": traces.sizes, **traces.report.to_dict()}
    (folder / "data_report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(parse_recipe((R1ZeroSFTConfig, TraceArguments, ModelConfig), description=__doc__))
