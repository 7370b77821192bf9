"""A run under the rules: it checks them, trains while there is time, evaluates, and submits.

In order: the rules that can be broken before training are checked; the clock starts (or goes on);
GRPO trains until `StopInTime` ends it; all validation problems are answered by the last weights,
and the clock ends; the submission is written and verified.

The same command goes on with a run that was killed, from its last checkpoint.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trl_r1zero.evaluation.environment import environment
from trl_r1zero.evaluation.files import differing
from trl_r1zero.recipe import ParsedRecipe
from trl_r1zero.recipe.loading import load_tokenizer, model_settings
from trl_r1zero.recipe.task_arguments import LoadedTask
from trl_r1zero.reports.report import write_report
from trl_r1zero.trainers import R1ZeroGRPOTrainer
from trl_r1zero.trainers.run_folder import METRICS_FILE, last_whole_checkpoint

from .clock import CLOCK_FILE, FINISHED, START, TRAINING_ENDED, Clock, parse_events, process_start
from .facts import collect_facts
from .rules import (
    Board,
    Check,
    RuleBrokenError,
    check_facts,
    check_overlap,
    check_run_settings,
    check_settings,
    get_board,
    inputs_sha256,
    question_hash,
    require_all,
)
from .stopping import StopInTime, StraightToEvaluation
from .submission import RECIPE_FILE, SUBMISSION_FILE, seal_submission, write_submission
from .verify import describe, read_submission, verify


@dataclass
class LeaderboardArguments:
    """Which board a run is for.

    Raises:
        ValueError: An unknown board (on `load`), or a budget above the board's.
    """

    board: str = field(default="math", metadata={"help": "Whose rules hold: math, embedded."})
    entry: str = field(
        default="", metadata={"help": "What the run is called in the table. Unset: its folder."}
    )
    budget_seconds: float | None = field(
        default=None,
        metadata={"help": "Finish in less than the board's budget. Unset: the board's."},
    )

    def load(self) -> tuple[Board, float]:
        """The board, and the budget of this run in seconds."""
        board = get_board(self.board)
        if self.budget_seconds is None:
            return board, board.budget_seconds
        if not 0 < self.budget_seconds <= board.budget_seconds:
            raise RuleBrokenError(
                f"budget_seconds must be above 0 and at most {board.budget_seconds:g}, the budget "
                f"of board {board.name}; got {self.budget_seconds:g}"
            )
        return board, self.budget_seconds


def run_submission(recipe: ParsedRecipe) -> None:
    """Make a submission, or go on with one.

    Args:
        recipe: Of `R1ZeroGRPOConfig`, `TaskArguments`, `LeaderboardArguments` and `ModelConfig`.

    Raises:
        RuleBrokenError: A rule would be broken; nothing was trained.
        ClockError: The clock of this folder cannot go on.
    """
    config, task_args, board_args, model_args = recipe.instances
    board, budget_seconds = board_args.load()
    folder = Path(config.output_dir)
    if (folder / "submission" / SUBMISSION_FILE).is_file():
        if _is_main():
            print(f"{folder / 'submission'} is finished; for another one choose an --output_dir")
        return
    if config.resume_from_checkpoint not in (None, "auto"):
        raise RuleBrokenError(
            f"resume_from_checkpoint: got {config.resume_from_checkpoint!r}; remove it: a run of "
            "the leaderboard goes on from its own last checkpoint by itself"
        )
    checks = [*check_settings(board, recipe.values), *check_run_settings(recipe.values)]
    task = task_args.load()
    checkpoint = last_whole_checkpoint(folder)
    entry = board_args.entry or folder.name
    clock = None
    facts: dict[str, Any] = {}
    if _is_main():
        facts = collect_facts(recipe.values, task, config.world_size, config.use_cpu)
        checks += [*check_facts(board, facts), _overlap(task)]
    require_all(checks)
    if is_finished(folder):  # and killed before its submission was written
        if _is_main():
            _submit(folder, board, entry, facts, task, Clock(folder / CLOCK_FILE))
        return
    if _is_main():
        clock = _start_clock(folder, recipe, checkpoint, config, inputs_sha256(facts))
    stopping = StopInTime(
        clock,
        budget_seconds,
        len(task.eval_dataset),
        min(config.num_eval_examples or len(task.eval_dataset), len(task.eval_dataset)),
    )
    trainer = R1ZeroGRPOTrainer(
        **model_settings(config, model_args),
        reward_funcs=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=load_tokenizer(model_args),
        stop=task.prompt.stop,
    )
    trainer.add_callback(stopping)  # the last, for it may end training before it begins
    train_and_evaluate(trainer, stopping, checkpoint)
    trainer.save_model(str(folder / "final"))
    if clock is not None:
        _submit(folder, board, entry, facts, task, clock)


def train_and_evaluate(
    trainer: R1ZeroGRPOTrainer, stopping: StopInTime, checkpoint: str | None
) -> None:
    """Train until there is time for the full evaluation only, and make that."""
    with suppress(StraightToEvaluation):  # there is nothing left to train; its reason is printed
        trainer.train(resume_from_checkpoint=checkpoint)
    stopping.reason = stopping.reason or "all n_grpo_steps are done"
    clock = stopping.clock
    if clock is not None:
        if not clock.has(TRAINING_ENDED):
            clock.record(TRAINING_ENDED, grpo_step=trainer.steps_done, reason=stopping.reason)
        print(
            f"Training ended after {trainer.steps_done} GRPO steps, {clock.elapsed:.0f} seconds "
            f"after the start: {stopping.reason}. Now all {stopping.num_problems:,} validation "
            "problems.",
            flush=True,
        )
    trainer.args.num_eval_examples = None
    metrics = trainer.evaluate()
    if clock is not None:
        clock.record(
            FINISHED,
            grpo_step=trainer.steps_done,
            accuracy=metrics["eval_accuracy"],
            accuracy_stderr=metrics.get("eval_accuracy_stderr"),
            num_problems=int(metrics["eval_num_examples"]),
            seconds=round(metrics["eval_seconds"], 3),
        )


def is_finished(folder: Path) -> bool:
    """Whether a run's clock has ended; only the main process may open the clock to write."""
    path = folder / CLOCK_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return any(event["event"] == FINISHED for event in parse_events(path, lines))


def _start_clock(
    folder: Path, recipe: ParsedRecipe, checkpoint: str | None, config: Any, inputs: str
) -> Clock:
    """The clock of this folder with this start in it."""
    clock = Clock(folder / CLOCK_FILE)
    recipe_path = folder / RECIPE_FILE
    if clock.events:
        there = yaml.safe_load(recipe_path.read_text(encoding="utf-8"))
        if changes := differing(there, yaml.safe_load(recipe.to_yaml())):
            raise RuleBrokenError(
                f"{folder} holds a submission by another recipe, which differs in\n  "
                + "\n  ".join(changes)
                + "\nGo on with it by its own recipe, or choose another --output_dir."
            )
    elif checkpoint is not None or (folder / METRICS_FILE).is_file():
        raise RuleBrokenError(
            f"{folder} holds a run, and no {CLOCK_FILE}: nobody knows how long it took; choose "
            "another --output_dir"
        )
    else:
        recipe.write(recipe_path)
    about = environment(config.world_size)
    from_step = 0
    if checkpoint is not None:
        from_step = int(checkpoint.rpartition("-")[2]) // config.updates_per_grpo_step
    clock.start(
        process_start(launcher=not clock.events),
        from_step,
        inputs=inputs,
        **{name: about[name] for name in ("commit", "device", "num_processes")},
    )
    if sum(event["event"] == START for event in clock.events) > 1:
        print(f"The clock of {folder} goes on: {clock.elapsed:.0f} seconds so far.", flush=True)
    return clock


def _submit(
    folder: Path, board: Board, entry: str, facts: dict[str, Any], task: LoadedTask, clock: Clock
) -> None:
    step = clock.events[-1]["grpo_step"]
    submission = write_submission(
        folder,
        board,
        entry,
        facts,
        task.train_dataset["question"],
        clock.events,
        folder / "evaluations" / f"grpo_step_{step:05d}.jsonl",
    )
    checks = verify(submission)
    about = read_submission(submission)
    # The check of the files is of submission.json itself, so it is not in it.
    seal_submission(submission, board, entry, about["facts"], checks[1:])
    write_report(folder)
    print("\n".join(describe(about, verify(submission))))
    print(f"The submission is {submission}")


def _overlap(task: LoadedTask) -> Check:
    return check_overlap(
        map(question_hash, task.train_dataset["question"]),
        map(question_hash, task.eval_dataset["question"]),
    )


def _is_main() -> bool:
    """Before there is an Accelerator."""
    return int(os.environ.get("RANK", "0")) == 0
