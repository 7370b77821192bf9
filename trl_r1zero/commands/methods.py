"""How each kind of run makes its trainer, whether a command or a script of recipes/ starts it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero import trainers


@dataclass(frozen=True)
class TrainingSetup:
    """What a trainer is made of: the settings of the trainer, of what it is trained on and of the
    model, and the model's tokenizer."""

    config: Any
    data: Any
    model: Any
    tokenizer: Any

    def prompt_rooms(self) -> dict[str, Any]:
        """What the context leaves for prompts, by the recipe's key of the data."""
        from trl_r1zero.recipe.loading import load_prompt_rooms

        return load_prompt_rooms(self.config, self.model, self.tokenizer)

    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments of a trainer that loads its model itself, but for the data."""
        from trl_r1zero.recipe.loading import model_settings

        return {**model_settings(self.config, self.model), "processing_class": self.tokenizer}


def _data_arguments(loaded: Any, reward: str = "reward_fn") -> dict[str, Any]:
    """Data and reward of a trainer that validates; `reward`: what it calls that."""
    return {
        "train_dataset": loaded.train_dataset,
        "eval_dataset": loaded.eval_dataset,
        "stop": loaded.prompt.stop,
        reward: loaded.reward,
    }


def _grpo(setup: TrainingSetup) -> "trainers.R1ZeroGRPOTrainer":
    data = _data_arguments(setup.data.load(setup.tokenizer, setup.prompt_rooms()), "reward_funcs")
    return trainers.R1ZeroGRPOTrainer(**setup.trainer_arguments(), **data)


def _expert_iteration(setup: TrainingSetup) -> "trainers.ExpertIterationTrainer":
    data = _data_arguments(setup.data.load(setup.tokenizer, setup.prompt_rooms()))
    return trainers.ExpertIterationTrainer(**setup.trainer_arguments(), **data)


def _sft(setup: TrainingSetup) -> "trainers.R1ZeroSFTTrainer":
    config = setup.config
    traces = setup.data.load_traces(
        setup.tokenizer, config.max_length, append_eos=config.append_eos, rooms=setup.prompt_rooms()
    )
    if config.process_index == 0:
        _report_data(traces, Path(config.output_dir))
    return trainers.R1ZeroSFTTrainer(**setup.trainer_arguments(), **_data_arguments(traces))


def _report_data(traces: Any, folder: Path) -> None:
    """Print what the data doctor says, and write it beside the run."""
    text = traces.to_text()
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_report.md").write_text(f"```text\n{text}\n```\n", encoding="utf-8")
    facts = {"sizes": traces.sizes, **traces.report.to_dict()}
    (folder / "data_report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _instruction_tuning(setup: TrainingSetup) -> Any:
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
    model = load_model(setup.model)
    return trainers.make_instruction_tuning_trainer(
        model, config, train_dataset, eval_dataset, setup.tokenizer
    )


def _dpo(setup: TrainingSetup) -> "trainers.R1ZeroDPOTrainer":
    train_dataset, eval_dataset = setup.data.load()
    return trainers.R1ZeroDPOTrainer(
        **setup.trainer_arguments(), train_dataset=train_dataset, eval_dataset=eval_dataset
    )


# Method (see `runs.kinds`) -> what makes its trainer.
MAKERS: dict[str, Callable[[TrainingSetup], Any]] = {
    "grpo": _grpo,
    "sft": _sft,
    "expert_iteration": _expert_iteration,
    "instruction_tuning": _instruction_tuning,
    "dpo": _dpo,
}
