"""The wall clock of a submission, and training that ends in time for the full evaluation.

The clock counts from the moment the operating system started the first process (the launcher, where
that is the run's parent) to the end of the full evaluation. `clock.jsonl` gets a line for each
event, also for each restart, so the time between is counted too. Times are seconds since 1970, not
those of a monotonic clock, which a restart of the machine would set back to 0.

After each GRPO step the run adds up what it still has to do: save the weights, answer all
validation problems, and, if it goes on, what is due now and one more step. If the time left may not
be enough for all of this, it stops.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

from trl_r1zero.common.folder_lock import holding
from trl_r1zero.common.processes import from_main
from trl_r1zero.evaluation.files import json_line, whole_lines
from trl_r1zero.trainers import R1ZeroGRPOTrainer

CLOCK_FILE = "clock.jsonl"
START = "start"  # of a process: the first one, or one that goes on
STEP = "step"  # a GRPO step is complete
VALIDATION = "validation"  # one while training
TRAINING_ENDED = "training_ended"  # the last weights are there, and saved
FINISHED = "finished"  # the full evaluation of the last weights is complete

# How much longer than the slowest so far a step, a save or an evaluation may take.
SAFETY = 1.5
# Before there is a measurement: shares of the budget.
UNMEASURED_EVALUATION = 0.15
UNMEASURED_SAVING = 0.01
# Steps that say how long the next one takes: responses grow and shrink as a run goes on.
_RECENT_STEPS = 20

Event = dict[str, Any]


class Clock:
    """The clock of a run's folder, in a file that is made if need be, and that no other process can
    open meanwhile (FolderInUseError)."""

    def __init__(self, path: Path) -> None:
        self._held = ExitStack()
        self._held.enter_context(holding(path.parent))
        self._file = path.open("a+b")
        # A line that a kill cut off is removed.
        self.events: list[Event] = [json.loads(line) for line in whole_lines(self._file)]

    def record(self, event: str, **facts: Any) -> None:
        """Write a line, which is on the disk when this returns."""
        self.events.append({"event": event, "time": round(time.time(), 3), **facts})
        self._file.write(json_line(self.events[-1]))
        self._file.flush()
        os.fsync(self._file.fileno())

    def has(self, event: str) -> bool:
        return any(line["event"] == event for line in self.events)

    @property
    def elapsed(self) -> float:
        """Seconds since the first start, now."""
        return time.time() - self.events[0]["process_started"]


def process_start() -> float:
    """When this process began, or the launcher that started it with the same script.

    A shell in between does not count: its command line is not the script's.
    """
    started = psutil.Process().create_time()
    with suppress(psutil.Error):  # a parent that is somebody else's, or gone, launched nothing here
        for parent in psutil.Process().parents():
            if sys.argv[0] not in parent.cmdline()[1:]:
                break
            started = parent.create_time()
    return started


def seconds_needed(
    events: Sequence[Event], budget_seconds: float, num_problems: int, num_due: int
) -> dict[str, float]:
    """What may come if training goes on -> its seconds: `SAFETY` times the slowest over all starts
    of this run; shares of the budget stand in for what was not measured yet.

    An evaluation takes its seconds per problem as the slowest validation did: a few problems keep
    the sampler less busy than many, so that is rather too long. The full one has `num_problems`,
    the validation that comes first `num_due`, 0 without one.
    """
    steps = [event for event in events if event["event"] == STEP]
    per_problem = [
        event["seconds"] / event["num_problems"] for event in events if event["event"] == VALIDATION
    ]
    evaluation = UNMEASURED_EVALUATION * budget_seconds
    if per_problem:
        evaluation = SAFETY * max(per_problem) * num_problems
    saving = SAFETY * max((event["pause_seconds"] for event in steps), default=0.0)
    return {
        "a validation": evaluation * num_due / num_problems,
        "another step": SAFETY * max((s["seconds"] for s in steps[-_RECENT_STEPS:]), default=0.0),
        "saving before and after it": 2 * max(saving, UNMEASURED_SAVING * budget_seconds),
        "the full evaluation": evaluation,
    }


class StraightToEvaluation(Exception):
    """A run that was started again has no time for another step, or had ended its training."""


class StopInTime(TrainerCallback):
    """Writes the clock, and ends training while there is time for what has to follow.

    The main process, which alone has the started clock, decides, and tells the others. The budget
    is from the clock's start to the end of the full evaluation of `num_problems`; a validation
    while training is of `num_validated`.
    """

    def __init__(
        self, clock: Clock | None, budget_seconds: float, num_problems: int, num_validated: int
    ) -> None:
        self.clock, self.budget_seconds = clock, budget_seconds
        self.num_problems, self.num_validated = num_problems, num_validated
        self.reason = ""  # why training ended, in words; empty while it goes on
        self._step_began = 0.0
        self._pause_began: float | None = None  # the end of a step, plus seconds of validations

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises StraightToEvaluation, on all processes, where there is nothing left to train."""
        if self.clock is not None:
            ended = "its training had ended before" if self.clock.has(TRAINING_ENDED) else ""
            self.reason = ended or self._no_time(validation_is_due=bool(args.eval_on_start))
        self.reason = from_main(self.reason)
        if self.reason:
            raise StraightToEvaluation(self.reason)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.updates_per_grpo_step == 0:
            self._step_began = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.updates_per_grpo_step != 0:
            return
        if self.clock is not None:
            pause_began = self._step_began if self._pause_began is None else self._pause_began
            self.clock.record(
                STEP,
                grpo_step=state.global_step // args.updates_per_grpo_step,
                seconds=round(time.time() - self._step_began, 3),
                pause_seconds=round(self._step_began - pause_began, 3),
            )
            self._pause_began = time.time()
            self.reason = self._no_time(validation_is_due=control.should_evaluate)
            if control.should_training_stop:
                self.reason = "all n_grpo_steps are done"
        self.reason = from_main(self.reason)
        if self.reason:
            control.should_training_stop = True
            control.should_evaluate = False  # all problems come next
            control.should_save = True  # a run that is killed while it evaluates goes on from here

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pause_began is not None:
            self._pause_began += kwargs["metrics"]["eval_seconds"]
        if self.clock is not None and not self.reason:
            grpo_step = state.global_step // args.updates_per_grpo_step
            self.clock.record(VALIDATION, **_evaluation_facts(grpo_step, kwargs["metrics"]))

    def _no_time(self, validation_is_due: bool) -> str:
        """Why training cannot go on; empty if it can."""
        assert self.clock is not None
        num_due = self.num_validated if validation_is_due else 0
        needs = seconds_needed(self.clock.events, self.budget_seconds, self.num_problems, num_due)
        left = self.budget_seconds - self.clock.elapsed
        if left >= sum(needs.values()):
            return ""
        return (
            f"{left:.0f} of {self.budget_seconds:.0f} seconds are left, of which may be needed: "
            + ", ".join(f"{seconds:.0f} for {what}" for what, seconds in needs.items() if seconds)
        )


def train_and_evaluate(
    trainer: R1ZeroGRPOTrainer, stopping: StopInTime, checkpoint: str | None
) -> None:
    """Train until there is time for the full evaluation only, and make that."""
    with suppress(StraightToEvaluation):  # there is nothing left to train; its reason is printed
        trainer.train(resume_from_checkpoint=checkpoint)
    clock, reason = stopping.clock, stopping.reason or "all n_grpo_steps are done"
    if clock is not None:
        if not clock.has(TRAINING_ENDED):
            clock.record(TRAINING_ENDED, grpo_step=trainer.steps_done, reason=reason)
        print(
            f"Training ended after {trainer.steps_done} GRPO steps, {clock.elapsed:.0f} seconds "
            f"after the start: {reason}. Now all {stopping.num_problems:,} validation problems.",
            flush=True,
        )
    stopping.reason = reason  # from here on evaluations are not validations
    trainer.validator.num_examples = None
    metrics = trainer.evaluate()
    if clock is not None:
        clock.record(FINISHED, **_evaluation_facts(trainer.steps_done, metrics))


def _evaluation_facts(grpo_step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the clock records of an evaluation."""
    return {
        "grpo_step": grpo_step,
        "accuracy": metrics["eval_accuracy"],
        "accuracy_stderr": metrics.get("eval_accuracy_stderr"),
        "num_problems": int(metrics["eval_num_examples"]),
        "seconds": round(metrics["eval_seconds"], 3),
    }
