"""A run under the rules: it checks them, trains while there is time, evaluates, and submits.

The same command goes on with a run that was killed, from its last checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_r1zero.common.arguments import arg
from trl_r1zero.common.processes import from_main
from trl_r1zero.common.run_files import METRICS_FILE
from trl_r1zero.evaluation.files import differing
from trl_r1zero.recipe import ParsedRecipe
from trl_r1zero.recipe.loading import load_tokenizer, model_settings
from trl_r1zero.recipe.task_arguments import LoadedTask
from trl_r1zero.reports.report import write_report
from trl_r1zero.trainers import R1ZeroGRPOTrainer
from trl_r1zero.trainers.results import remove_results
from trl_r1zero.trainers.run_folder import last_whole_checkpoint, write_skipped_rows

from .clock import CLOCK_FILE, FINISHED, START, Clock, StopInTime, process_start, train_and_evaluate
from .facts import collect_facts
from .rules import Board, RuleBrokenError, check_facts, check_settings, get_board
from .submission import RECIPE_FILE, SUBMISSION_FILE, judge, write_submission


@dataclass
class LeaderboardArguments:
    """The board of a run; `load` raises a ValueError if it is unknown, or its budget is less."""

    board: str = arg("math", "Whose rules hold: math, embedded.")
    entry: str = arg("", "What the run is called in the table. Unset: its folder.")
    budget_seconds: float | None = arg(
        None, "Finish in less than the board's budget. Unset: the board's."
    )

    def load(self) -> tuple[Board, float]:
        """The board, and the budget of this run in seconds."""
        board = get_board(self.board)
        budget = board.budget_seconds if self.budget_seconds is None else self.budget_seconds
        if not 0 < budget <= board.budget_seconds:
            raise RuleBrokenError(
                f"budget_seconds must be above 0 and at most {board.budget_seconds:g}, the budget "
                f"of board {board.name}; got {budget:g}"
            )
        return board, budget


def run_submission(recipe: ParsedRecipe) -> None:
    """Make a submission, or go on with one; the recipe is of `R1ZeroGRPOConfig`, `TaskArguments`,
    `LeaderboardArguments` and `ModelConfig`.

    Raises:
        RuleBrokenError: A rule would be broken; nothing was trained.
        FolderInUseError: Another process is running in the output folder.
    """
    config, task_args, board_args, _ = recipe.instances
    board, _ = board_args.load()
    folder, is_main = Path(config.output_dir), config.process_index == 0
    if (folder / "submission" / SUBMISSION_FILE).is_file():
        if is_main:
            print(f"{folder / 'submission'} is finished; for another one choose an --output_dir")
        return
    if config.resume_from_checkpoint not in (None, "auto"):
        raise RuleBrokenError(
            f"resume_from_checkpoint: got {config.resume_from_checkpoint!r}; remove it: a run of "
            "the leaderboard goes on from its own last checkpoint by itself"
        )
    if isinstance(task_args.eval_data, list):
        raise RuleBrokenError("eval_data: got a list of sets; give the board's validation problems")
    task = task_args.load()
    checks = check_settings(board, recipe.values)
    facts: dict[str, Any] = {}
    if is_main:
        facts = collect_facts(recipe.values, task, config.world_size, config.use_cpu)
        checks += check_facts(board, facts)
    broken = [
        f"\n  {check.rule}: got {check.evidence}; allowed: {check.allowed}. {check.advice}"
        for check in checks
        if not check.holds
    ]
    if broken:
        raise RuleBrokenError(f"this run breaks rules of the leaderboard:{''.join(broken)}")
    clock = _open_clock(folder, recipe, facts) if is_main else None
    # A run may have been killed between the end of its evaluation and its submission.
    if not from_main(clock is not None and clock.has(FINISHED)):
        _train(recipe, task, clock)
    if clock is not None:
        submission = write_submission(folder, board, board_args.entry or folder.name, clock.events)
        write_report(folder)
        print(f"{judge(submission)[2]}\nThe submission is {submission}")


def _open_clock(folder: Path, recipe: ParsedRecipe, facts: dict[str, Any]) -> Clock:
    """The clock of this folder with this start in it, unless it has ended."""
    clock = Clock(folder / CLOCK_FILE)
    if clock.has(FINISHED):
        return clock
    path = folder / RECIPE_FILE
    if clock.events:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        changes = differing(there, yaml.safe_load(recipe.to_yaml()))
        changes += differing(clock.events[0]["facts"], facts)
        if changes:
            raise RuleBrokenError(
                f"{folder} holds a submission by another recipe, other data or hardware:\n  "
                + "\n  ".join(changes)
                + "\nGo on with it as it was started, or choose another --output_dir."
            )
        print(f"The clock of {folder} goes on: {clock.elapsed:.0f} seconds so far.", flush=True)
        clock.record(START)
        return clock
    if (folder / METRICS_FILE).is_file() or last_whole_checkpoint(folder):
        raise RuleBrokenError(
            f"{folder} holds a run whose {CLOCK_FILE} is missing or empty, so the time used is not "
            "known; choose another --output_dir"
        )
    recipe.write(path)
    write_skipped_rows(folder, recipe.instances[1].skipped_rows)
    clock.record(START, process_started=process_start(), facts=facts)
    return clock


def _train(recipe: ParsedRecipe, task: LoadedTask, clock: Clock | None) -> None:
    """Train in time, evaluate, and save the last weights."""
    config, _, board_args, model_args = recipe.instances
    folder = Path(config.output_dir)
    num_problems = len(task.eval_dataset)
    num_validated = min(config.num_eval_examples or num_problems, num_problems)
    stopping = StopInTime(clock, board_args.load()[1], num_problems, num_validated)
    trainer = R1ZeroGRPOTrainer(
        **model_settings(config, model_args),
        reward_funcs=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=load_tokenizer(model_args),
        stop=task.prompt.stop,
    )
    remove_results(trainer)  # the time is for training
    trainer.add_callback(stopping)  # the last, for it may end training before it begins
    train_and_evaluate(trainer, stopping, "auto")
    trainer.save_model(str(folder / "final"))
