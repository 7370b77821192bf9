"""Training that ends in time for the full evaluation.

After each GRPO step the run asks what it still has to do: save the weights and answer all
validation problems, and, if it goes on, whatever is due now (a validation, a checkpoint) and one
more step. If the time that is left may not be enough for all of this, it stops.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .clock import STEP, TRAINING_ENDED, VALIDATION, Clock, Event

# How much longer than the slowest so far a step, a save or an evaluation may take.
SAFETY = 1.5
# Before there is a measurement: shares of the budget.
UNMEASURED_EVALUATION = 0.15
UNMEASURED_PAUSE = 0.01
# Steps that say how long the next one takes: responses grow and shrink as a run goes on.
_RECENT_STEPS = 20


class StraightToEvaluation(Exception):
    """A run that was started again has no time for another step, or had ended its training."""


@dataclass(frozen=True)
class Needs:
    """Seconds that what is still to do may take.

    Attributes:
        step: One more GRPO step.
        pause: Saving the weights, as between two steps.
        evaluation: The full evaluation.
        validation: One while training.
    """

    step: float
    pause: float
    evaluation: float
    validation: float

    @property
    def to_finish(self) -> float:
        return self.pause + self.evaluation

    def to_go_on(self, validation_is_due: bool) -> float:
        """What has to be left for another step, with what comes before and after it."""
        due = self.validation if validation_is_due else 0.0
        return due + self.pause + self.step + self.to_finish


def estimate_needs(
    events: Sequence[Event], budget_seconds: float, num_problems: int, num_validated: int
) -> Needs:
    """What is still to do takes `SAFETY` times what it took in this run so far.

    An evaluation takes its seconds per problem as the slowest validation did: a few problems keep
    the sampler less busy than many, so that is rather too long. Where nothing was measured yet,
    shares of the budget stand in.

    Args:
        events: The clock's, over all starts.
        budget_seconds: The whole budget.
        num_problems: Of the full evaluation.
        num_validated: Of a validation while training.
    """
    steps = [event for event in events if event["event"] == STEP]
    per_problem = [
        event["seconds"] / event["num_problems"] for event in events if event["event"] == VALIDATION
    ]
    evaluation = SAFETY * max(per_problem, default=0.0) * num_problems
    if not per_problem:
        evaluation = UNMEASURED_EVALUATION * budget_seconds
    pause = SAFETY * max((event["pause_seconds"] for event in steps), default=0.0)
    return Needs(
        step=SAFETY * max((event["seconds"] for event in steps[-_RECENT_STEPS:]), default=0.0),
        pause=max(pause, UNMEASURED_PAUSE * budget_seconds),
        evaluation=evaluation,
        validation=evaluation * num_validated / num_problems,
    )


class StopInTime(TrainerCallback):
    """Writes the clock, and ends training while there is time for what has to follow.

    The main process decides, and tells the others.

    Args:
        clock: The clock, started; None on processes other than the main one.
        budget_seconds: From the clock's start to the end of the full evaluation.
        num_problems: Of the full evaluation.
        num_validated: Of a validation while training.

    Attributes:
        reason: Why training ended, in words; empty while it goes on.
    """

    def __init__(
        self,
        clock: Clock | None,
        budget_seconds: float,
        num_problems: int,
        num_validated: int,
    ) -> None:
        self.clock = clock
        self.budget_seconds = budget_seconds
        self.num_problems = num_problems
        self.num_validated = num_validated
        self.reason = ""
        self._step_began: float | None = None
        self._step_ended: float | None = None
        self._pause_seconds = 0.0
        self._validation_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises StraightToEvaluation, on all processes, where there is nothing left to train."""
        reason = ""
        if self.clock is not None:
            if self.clock.has(TRAINING_ENDED):
                reason = "its training had ended before"
            else:
                reason = self._no_time(validation_is_due=bool(args.eval_on_start))
        self.reason = _from_main(reason)
        if self.reason:
            raise StraightToEvaluation(self.reason)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % args.updates_per_grpo_step == 0:
            self._step_began = time.perf_counter()
            if self._step_ended is not None:
                pause = self._step_began - self._step_ended - self._validation_seconds
                self._pause_seconds = max(0.0, pause)
            self._validation_seconds = 0.0

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step % args.updates_per_grpo_step != 0:
            return control
        self._step_ended = time.perf_counter()
        reason = ""
        if self.clock is not None:
            assert self._step_began is not None
            self.clock.record(
                STEP,
                grpo_step=state.global_step // args.updates_per_grpo_step,
                seconds=round(self._step_ended - self._step_began, 3),
                pause_seconds=round(self._pause_seconds, 3),
            )
            if control.should_training_stop:
                reason = "all n_grpo_steps are done"
            else:
                reason = self._no_time(validation_is_due=control.should_evaluate)
        self.reason = _from_main(reason)
        if self.reason:
            control.should_training_stop = True
            control.should_evaluate = False  # all problems come next
            control.should_save = True  # a run that is killed while it evaluates goes on from here
        return control

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        metrics: dict[str, float] = kwargs["metrics"]
        self._validation_seconds += metrics["eval_seconds"]
        if self.clock is not None and not self.reason:
            self.clock.record(
                VALIDATION,
                grpo_step=state.global_step // args.updates_per_grpo_step,
                accuracy=metrics["eval_accuracy"],
                accuracy_stderr=metrics.get("eval_accuracy_stderr"),
                num_problems=int(metrics["eval_num_examples"]),
                seconds=round(metrics["eval_seconds"], 3),
            )

    def _no_time(self, validation_is_due: bool) -> str:
        """Why training cannot go on; empty if it can."""
        assert self.clock is not None
        needs = estimate_needs(
            self.clock.events, self.budget_seconds, self.num_problems, self.num_validated
        )
        left = self.budget_seconds - self.clock.elapsed
        needed = needs.to_go_on(validation_is_due)
        if left >= needed:
            return ""
        return (
            f"{left:.0f} of {self.budget_seconds:.0f} seconds are left, and another step "
            f"({needs.step:.0f}), saving ({needs.pause:.0f}) and the full evaluation "
            f"({needs.evaluation:.0f}) may take {needed:.0f}"
        )


def _from_main(reason: str) -> str:
    """What the main process says; a collective call."""
    values = [reason]
    broadcast_object_list(values, from_process=0)
    return values[0]
