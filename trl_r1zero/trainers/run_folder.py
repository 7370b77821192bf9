"""The folder of a run: who works in it, its metrics, settings, versions and checkpoints."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_r1zero.common.folder_lock import holding
from trl_r1zero.common.processes import from_main_process
from trl_r1zero.common.run_files import (
    METRICS_FILE,
    SKIPPED_FILE,
    numbered_lines,
    parse_line,
)
from trl_r1zero.evaluation.environment import environment
from trl_r1zero.evaluation.files import append_line, json_line, json_text, read_json, valid_json
from trl_r1zero.evaluation.files import write_atomically as write

from .run_identity import go_on_with

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


class RunFolder:
    """Owns the `output_dir` of a run of any kind, a recipe's or a library's.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path or ".")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the folder for this run; a collective call.

        Raises:
            FolderInUseError: Another process works in it.
        """
        with ExitStack() as stack:

            def hold() -> None:
                stack.enter_context(holding(self.path))

            from_main_process(hold)
            yield

    def checkpoint(self, resume_from_checkpoint: str | None) -> str | None:
        """See `checkpoint_to_resume`; a collective call."""
        return from_main_process(lambda: checkpoint_to_resume(self.path, resume_from_checkpoint))

    def go_on_with(
        self,
        checkpoint: str | None,
        there: Callable[[], Mapping[str, Any]],
        here: Mapping[str, Any],
    ) -> None:
        """See `run_identity.go_on_with`; nothing for a fresh run, or one that begins with the
        checkpoint of another folder. A collective call; `there` is called by the main process."""
        if checkpoint is not None and Path(checkpoint).resolve().parent == self.path.resolve():
            from_main_process(lambda: go_on_with(self.path, there(), here, checkpoint))

    def config(self) -> dict[str, Any]:
        """The trainer's settings so far; nothing if it wrote none."""
        file = self.path / CONFIG_FILE
        return dict(read_json(file)) if file.is_file() else {}


class RunFolderCallback(TrainerCallback):
    """Writes `metrics.jsonl`, `config.json` and `environment.json` into the output folder.

    `metrics.jsonl` has one line of JSON for each log: all its metrics (null for one that is not
    finite), `step` (optimizer updates) and `elapsed_seconds` (wall-clock since the start of
    training; a resumed run counts on from the checkpoint). On resuming, lines after the checkpoint
    are dropped, as their steps are done again.

    Args:
        step_key: What counts optimizer updates in each line, for a trainer that does not log it.
    """

    def __init__(self, step_key: str | None = None) -> None:
        self._step_key = step_key
        self._started = time.perf_counter()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        elapsed = 0.0
        # A checkpoint has those that the run was started with, which may change.
        state.compute_steps(args, state.max_steps)
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".")
            folder.mkdir(parents=True, exist_ok=True)
            elapsed = _keep_until(folder / METRICS_FILE, state.global_step)
            settings = json.loads(json.dumps(args.to_dict(), default=str))
            write(folder / CONFIG_FILE, json_text(valid_json(settings)))
            name = None if model is None else model.config.name_or_path or None
            facts = {"model": name, **environment(args.world_size)}
            write(folder / "environment.json", json_text(facts))
        self._started = time.perf_counter() - elapsed

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {
            "step": state.global_step,
            "elapsed_seconds": round(time.perf_counter() - self._started, 3),
            **({self._step_key: state.global_step} if self._step_key else {}),
            # transformers' epoch counts the run as one, which says nothing about passes over data.
            **{name: value for name, value in logs.items() if name != "epoch"},
        }
        append_line(Path(args.output_dir or ".", METRICS_FILE), valid_json(line))


def write_skipped_rows(folder: Path, skipped: Mapping[str, Any]) -> None:
    """Write what was left out of a run's data, by the recipe's key; nothing if that is nothing."""
    if skipped:
        write(folder / SKIPPED_FILE, json_text(skipped))


def _keep_until(path: Path, step: int) -> float:
    """Drop lines after `step`; return the seconds that the kept ones had taken."""
    if not path.is_file() or step == 0:
        path.unlink(missing_ok=True)
        return 0.0
    kept: list[dict[str, Any]] = []
    broken: ValueError | None = None
    for number, line in numbered_lines(path):
        try:
            metrics = parse_line(line, f"{path}:{number}")
        except ValueError as error:
            broken = broken or error  # of no matter behind all that is kept
            continue
        if metrics.get("step", 0) <= step:
            if broken is not None:
                raise broken
            kept.append(metrics)
    write(path, b"".join(json_line(valid_json(line)) for line in kept))
    if broken is not None:
        logger.warning("%s; it was dropped with the steps that are done again", broken)
    return max((line.get("elapsed_seconds", 0.0) for line in kept), default=0.0)


def is_whole_checkpoint(path: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer's state is the last of its files."""
    try:
        json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, which a kill may have prevented."""
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    by_step = {
        int(match[1]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := name.fullmatch(path.name))
    }
    newest_first = (by_step[step] for step in sorted(by_step, reverse=True))
    return next((str(path) for path in newest_first if is_whole_checkpoint(path)), None)


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str | None) -> str | None:
    """The checkpoint that a run starts from, or None for a fresh start.

    Args:
        output_dir: The run's folder.
        resume_from_checkpoint: None for a fresh run, `last` for the newest checkpoint in
            `output_dir` that is whole, `auto` for the same if there is one and a fresh run if not,
            or a path.

    Raises:
        ValueError: A fresh run would overwrite another's metrics, or there is no such checkpoint,
            or it is not whole.
    """
    folder = Path(output_dir)
    if resume_from_checkpoint is None:
        if (folder / METRICS_FILE).is_file():
            go_on = "go on with it by `--resume_from_checkpoint last`"
            if last_whole_checkpoint(folder) is None:
                go_on = (
                    "start it anew, as it ended before its first checkpoint, by "
                    "`--resume_from_checkpoint auto`"
                )
            raise ValueError(
                f"{folder} already holds a run; choose another --output_dir, or {go_on}"
            )
        return None
    if resume_from_checkpoint in ("auto", "last"):
        last = last_whole_checkpoint(folder)
        if last is None and resume_from_checkpoint == "last":
            raise ValueError(
                f"there is no checkpoint in {folder} that was written to its end; use `auto`, or "
                "start afresh"
            )
        return last
    if not Path(resume_from_checkpoint).is_dir():
        raise ValueError(
            f"resume_from_checkpoint: got {resume_from_checkpoint!r}, which is no folder; give "
            "the path of a checkpoint, `last` or `auto`"
        )
    if not is_whole_checkpoint(Path(resume_from_checkpoint)):
        raise ValueError(
            f"resume_from_checkpoint: {resume_from_checkpoint} was not written to its end: it has "
            f"no {TRAINER_STATE_NAME}, or a part of one; give an earlier checkpoint, or `last`, "
            "which passes such ones over"
        )
    return resume_from_checkpoint
