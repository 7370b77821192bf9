"""What a run leaves on disk besides checkpoints: its metrics, its settings, its versions."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from trl_r1zero.evaluation.environment import environment

METRICS_FILE = "metrics.jsonl"
# The key of a line of metrics that says how far the run is, which differs by the kind of run ->
# what it counts.
STEP_NAMES = {
    "grpo_step": "GRPO step",
    "ei_step": "EI step",
    "train_step": "update",
    "dpo_step": "update",
    "tuning_step": "update",
}


class RunFolderCallback(TrainerCallback):
    """Writes `metrics.jsonl`, `config.json` and `environment.json` into the output folder.

    `metrics.jsonl` has one line for each log: all its metrics, `step` (optimizer updates) and
    `elapsed_seconds` (wall-clock since the start of training; a resumed run counts on from the
    checkpoint). On resuming, lines after the checkpoint are dropped, as their steps are done again.

    Args:
        step_key: A key of `STEP_NAMES` that counts optimizer updates, to be added to each line, for
            a trainer that does not log its own.
    """

    def __init__(self, step_key: str | None = None) -> None:
        self._step_key = step_key
        self._started = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        elapsed = 0.0
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".")
            folder.mkdir(parents=True, exist_ok=True)
            elapsed = _keep_until(folder / METRICS_FILE, state.global_step)
            settings = json.dumps(args.to_dict(), indent=2, default=str)
            (folder / "config.json").write_text(settings + "\n")
            (folder / "environment.json").write_text(
                json.dumps(environment(args.world_size), indent=2) + "\n"
            )
        self._started = time.perf_counter() - elapsed

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {
            "step": state.global_step,
            "elapsed_seconds": round(time.perf_counter() - self._started, 3),
            **({self._step_key: state.global_step} if self._step_key else {}),
            # transformers' epoch counts the run as one, which says nothing about passes over data.
            **{name: value for name, value in logs.items() if name != "epoch"},
        }
        with Path(args.output_dir or ".", METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in order; a last line that a crash cut off is left out.

    Raises:
        FileNotFoundError: The folder has none.
    """
    path = Path(folder, METRICS_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the output folder of a run")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _keep_until(path: Path, step: int) -> float:
    """Drop lines after `step`; return the seconds that the kept ones had taken."""
    if not path.is_file() or step == 0:
        path.unlink(missing_ok=True)
        return 0.0
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return max((line["elapsed_seconds"] for line in kept), default=0.0)


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str | None) -> str | None:
    """The checkpoint that a run starts from, or None for a fresh start.

    Args:
        output_dir: The run's folder.
        resume_from_checkpoint: None for a fresh run, `last` for the newest checkpoint in
            `output_dir`, `auto` for the same if there is one and a fresh run if not, or a path.

    Raises:
        ValueError: A fresh run would overwrite another's metrics, or there is no such checkpoint.
    """
    folder = Path(output_dir)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if resume_from_checkpoint == "auto":
        return last
    if resume_from_checkpoint == "last":
        if last is None:
            raise ValueError(f"there is no checkpoint in {folder}; use `auto`, or start afresh")
        return last
    if resume_from_checkpoint is not None:
        if not Path(resume_from_checkpoint).is_dir():
            raise ValueError(
                f"resume_from_checkpoint: got {resume_from_checkpoint!r}, which is no folder; give "
                "the path of a checkpoint, `last` or `auto`"
            )
        return resume_from_checkpoint
    if (folder / METRICS_FILE).is_file():
        raise ValueError(
            f"{folder} already holds a run; choose another --output_dir, or go on with it by "
            "`--resume_from_checkpoint last`"
        )
    return None
