"""Supervised fine-tuning on reasoning traces from a recipe.

accelerate launch recipes/sft.py --config recipes/quickstart/sft.yaml [--key value ...]
"""

import json
from pathlib import Path
from typing import Any

import trl_r1zero
from trl_r1zero.commands.training import TrainingSetup, train


def make_trainer(setup: TrainingSetup) -> "trl_r1zero.R1ZeroSFTTrainer":
    config = setup.config
    traces = setup.data.load_traces(
        setup.tokenizer,
        config.max_length,
        append_eos=config.append_eos,
        rooms=setup.prompt_rooms(),
    )
    if config.process_index == 0:
        report_data(traces, Path(config.output_dir))
    return trl_r1zero.R1ZeroSFTTrainer(
        **setup.trainer_arguments(),
        reward_fn=traces.reward,
        train_dataset=traces.train_dataset,
        eval_dataset=traces.eval_dataset,
        stop=traces.prompt.stop,
    )


def report_data(traces: Any, folder: Path) -> None:
    """Print what the data doctor says, and write it beside the run."""
    text = traces.to_text()
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_report.md").write_text(f"```text\n{text}\n```\n", encoding="utf-8")
    facts = {"sizes": traces.sizes, **traces.report.to_dict()}
    (folder / "data_report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    train("sft", __doc__, make_trainer)
