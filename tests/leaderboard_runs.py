"""Runs of the leaderboard's embedded board, with an untrained model: seconds each."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_models import REPOSITORY
from transformers import Qwen2ForCausalLM
from trl import ModelConfig

from trl_r1zero import R1ZeroGRPOConfig
from trl_r1zero.leaderboard.clock import CLOCK_FILE
from trl_r1zero.leaderboard.runner import LeaderboardArguments
from trl_r1zero.leaderboard.submission import file_hashes, read_submission, results, verify
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.task_arguments import TaskArguments

SCRIPT = "../leaderboard/run.py"  # as seen from recipes/
DATACLASSES = (R1ZeroGRPOConfig, TaskArguments, LeaderboardArguments, ModelConfig)
RECIPE = {
    "board": "embedded",
    "entry": "a test",
    "task": "chain_arithmetic",
    "task_args": {"num_train": 64},
    "use_cpu": True,
    "n_grpo_steps": 40,
    "rollout_batch_size": 16,
    "group_size": 4,
    "train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 6,
    "eval_max_completion_length": 64,
    "eval_every": 20,
    "num_eval_examples": 16,
    "per_device_eval_batch_size": 256,
    "save_every": 1,
    "save_best": False,
    "log_rollouts_every": None,
    "report_to": "none",
}


def make_board_model(folder: Path) -> Path:
    """An untrained model of the embedded board's shape, with its tokenizer.

    All embeddings point the same way, and so do its states, that of the end of the text a little
    further: its responses have about ten tokens, which saves the time of 64.
    """
    path = REPOSITORY / "recipes" / "quickstart" / "make_inputs.py"
    spec = importlib.util.spec_from_file_location("make_inputs_of_the_board", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(script.InputArguments(output_dir=str(folder), num_base_traces=8, num_questions=8))
    model = Qwen2ForCausalLM.from_pretrained(folder / "model")
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        direction = torch.ones(weight.shape[1]) / weight.shape[1] ** 0.5
        weight.add_(direction)
        weight[model.config.eos_token_id] += 1.5 * direction
    model.save_pretrained(folder / "model")
    return folder / "model"


def parsed(model: Path, output_dir: Path, **changes: Any) -> ParsedRecipe:
    """`RECIPE` with changes, as the script parses it."""
    values = {
        **RECIPE,
        "model_name_or_path": str(model),
        "output_dir": str(output_dir),
        **changes,
    }
    argv = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]
    return parse_recipe(DATACLASSES, argv)


def events_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / CLOCK_FILE
    if not path.is_file():
        return []
    # The run may be in the middle of a line.
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Write submission.json anew, as somebody would who had changed the other files (or its facts):
    the hashes fit, so the rules have to find it."""
    about = read_submission(folder)
    if change is not None:
        change(about["facts"])
    rows, events = (
        [json.loads(line) for line in (folder / name).read_bytes().splitlines()]
        for name in ("responses.jsonl", CLOCK_FILE)
    )
    about |= {**results(rows, events), "files": file_hashes(folder)}
    (folder / "submission.json").write_text(json.dumps(about))


def change_lines(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def broken_rules(folder: Path) -> list[str]:
    return [check.rule for check in verify(folder) if not check.holds]
