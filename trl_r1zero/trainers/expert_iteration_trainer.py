"""Expert iteration: sample, keep what is correct, fine-tune on it, and again.

Anthony et al. 2017, arXiv:1705.08439; for language models as STaR (Zelikman et al. 2022,
arXiv:2203.14465). One EI step, in the order of the code:

1. `collect_rollouts`: sample `group_size` completions of each of `ei_batch_size` questions with the
   current policy, grade them, keep the correct ones and write them to disk.
2. `sft_epochs_per_step` epochs of supervised fine-tuning on those, by `R1ZeroSFTTrainer`'s updates.
   One optimizer serves the whole run.
3. Validation and a checkpoint.

To the loop of transformers the run is one sequence of updates: new rollouts are collected where the
loop asks for the next train batch and there is none left. Every process has all kept rollouts and
takes its share of each train batch, so all take the same way. A step without a correct rollout has
no updates. A resumed run finds its place in the files of the EI steps, and does not sample again
what was complete.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_r1zero.common.processes import from_main
from trl_r1zero.common.run_files import read_metrics
from trl_r1zero.evaluation import mean, standard_error, summarize, write_generations
from trl_r1zero.generation import row_seeds

from .epoch_configs import ExpertIterationConfig
from .epochs import TrainRow, epoch_batches
from .kept_rollouts import (
    EIStep,
    KeptRollout,
    choose_kept,
    forget_ei_steps,
    read_ei_steps,
    read_kept,
    write_ei_step,
)
from .rollout_sampler import shuffled_forever
from .sampling import GradedSample
from .sft_trainer import R1ZeroSFTTrainer
from .token_tables import write_tokens

logger = logging.getLogger(__name__)


class ExpertIterationTrainer(R1ZeroSFTTrainer):
    """Trains a causal language model on its own correct answers.

    Args:
        model: A model, or the path or hub id of one.
        args: The settings.
        train_dataset: Columns `prompt` (formatted text) and `ground_truth`: the questions.
        eval_dataset: The same columns, in one set or several, as in `R1ZeroSFTTrainer`.
        reward_fn: `(response, ground_truth) -> dict` with `reward` and its parts, or a `TRLReward`.
            It grades rollouts and validation; a rollout is correct if its `answer_reward` (without
            one, its `reward`) is above 0.
        processing_class, stop, callbacks, optimizers, peft_config, quantization_config: As in
            `R1ZeroSFTTrainer`.

    Raises:
        ValueError: A data set lacks a column, there are fewer questions than `ei_batch_size`, or
            settings contradict one another.
        VLLMServerError: With use_vllm, there is no server, or it cannot be started.
    """

    args: ExpertIterationConfig
    step_key = "ei_step"
    step_name = "EI step"
    train_columns = ("prompt", "ground_truth")

    def set_up_rows(self, stop: tuple[str | int, ...]) -> None:
        args = self.args
        if self.grader is None:
            raise ValueError("expert iteration needs a reward_fn to tell which rollouts to keep")
        if len(self.train_dataset) < args.ei_batch_size:
            raise ValueError(
                f"the training set has {len(self.train_dataset)} questions, fewer than "
                f"ei_batch_size ({args.ei_batch_size}); lower it, or use a larger training set"
            )
        self.rollout_sampling = args.rollout_sampling(stop)
        self.ei_steps: list[EIStep] = []
        self.add_callback(_EndOfEIStep(self))

    def longest_row(self) -> int:
        """Tokens of the longest question with the longest answer."""
        longest_question = self.sampler.longest(self.train_dataset["prompt"])
        return longest_question + self.rollout_sampling.max_tokens

    # Steps

    @property
    def steps_done(self) -> int:
        """EI steps that are complete."""
        done = [step.number for step in self.ei_steps if step.end <= self.state.global_step]
        return max(done, default=0)

    @property
    def num_steps(self) -> int:
        return self.args.n_ei_steps

    @property
    def current_step(self) -> int:
        return self.step_of_update(self.state.global_step).number

    def step_of_update(self, update: int) -> EIStep:
        """The EI step that update number `update`, from 0, belongs to."""
        return next(step for step in self.ei_steps if step.first_update <= update < step.end)

    def begin(self, checkpoint: str | None) -> None:
        self.ei_steps = []
        if not checkpoint and self.accelerator.is_main_process:
            forget_ei_steps(self.run_folder)

    def train_batches(self) -> Iterator[list[TrainRow]]:
        args, started_at = self.args, self.state.global_step
        self.ei_steps = from_main(
            read_ei_steps(self.run_folder, started_at)
            if self.accelerator.is_main_process and started_at > 0
            else []
        )
        for number in range(1, args.n_ei_steps + 1):
            if number > len(self.ei_steps):
                step, kept = self.collect_rollouts(number)
                self.ei_steps.append(step)
                self._log_rollouts(step)
            elif self.ei_steps[number - 1].end > started_at:
                step, kept = self._rollouts_on_disk(number)
            else:
                continue
            # As many updates for each of the steps to come, for all that is known.
            self.progress.expect(step.end + (args.n_ei_steps - number) * step.num_updates)
            rows = [
                TrainRow(prompt_ids, rollout.token_ids)
                for prompt_ids, rollout in zip(
                    self.sampler.prompt_ids([rollout.prompt for rollout in kept]) if kept else [],
                    kept,
                    strict=True,
                )
            ]
            update = step.first_update
            for epoch in range(args.sft_epochs_per_step):
                for batch in epoch_batches(
                    rows,
                    args.train_batch_size,
                    shuffle=bool(args.shuffle_dataset),
                    seed=(args.seed, number, epoch),
                ):
                    if update >= started_at:
                        yield batch
                    update += 1
        # The loop of transformers is here only if the last steps had no updates.
        self.control.should_training_stop = True
        last = max((step.number for step in self.ei_steps if step.num_updates), default=0)
        if last < args.n_ei_steps and self.state.global_step > started_at:
            self.control.should_evaluate = self._is_due(args.n_ei_steps, args.eval_every)
            self.control.should_save = self._is_due(args.n_ei_steps, args.save_every)

    def _is_due(self, number: int, every: int | None) -> bool:
        """Whether something that is done every so many EI steps is, after EI step `number`."""
        return every is not None and (number % every == 0 or number == self.args.n_ei_steps)

    # 1. Rollouts

    def collect_rollouts(self, number: int) -> tuple[EIStep, list[KeptRollout]]:
        """Sample and grade the rollouts of EI step `number`, from 1, and keep the correct ones, on
        disk too; returns the same on every process."""
        args = self.args
        start = (number - 1) * args.ei_batch_size
        order = shuffled_forever(
            len(self.train_dataset), shuffle=bool(args.shuffle_dataset), seed=args.seed
        )
        questions = list(islice(order, start, start + args.ei_batch_size))
        examples = [
            example
            for example in self.train_dataset.select(questions).to_list()
            for _ in range(args.group_size)
        ]
        with self.timer.part("rollouts"):
            sample = self.sampler.sample_and_grade(
                examples,
                self.rollout_sampling,
                row_seeds(args.seed, "rollout", number, range(len(examples))),
                self.grade,
                completions_per_example=args.group_size,
                num_with_tokens=args.num_rollouts_to_log,
                description=f"Rollouts of EI step {number}",
            )
        kept = choose_kept(
            sample.rows,
            [completion.token_ids for completion in sample.completions],
            max_per_question=args.max_per_question,
            drop_duplicates=args.drop_duplicates,
        )
        seconds = self.timer.collect()["rollouts"]
        step = EIStep(
            number=number,
            first_update=self.state.global_step,
            num_updates=args.sft_epochs_per_step * -(-len(kept) // args.train_batch_size),
            metrics=self._rollout_metrics(sample, kept) | {"rollout_seconds": seconds},
        )
        if self.accelerator.is_main_process:
            path = self.run_folder / "rollouts" / f"ei_step_{number:05d}"
            first = args.num_rollouts_to_log
            write_generations(sample.rows[:first], path, title=f"Rollouts of EI step {number}")
            write_tokens(
                sample.completions[:first], self.sampler.tokenizer, path.with_suffix(".jsonl")
            )
            write_ei_step(self.run_folder, step, kept)
        if not kept:
            logger.warning(
                "EI step %d: none of %d rollouts is correct, so there is nothing to train on; the "
                "next step takes other questions",
                number,
                len(sample.rows),
            )
        return step, kept

    def _rollout_metrics(self, sample: GradedSample, kept: list[KeptRollout]) -> dict[str, float]:
        groups: dict[int | None, list[bool]] = {}
        for row in sample.rows:
            groups.setdefault(row.example, []).append(row.correct)
        solved = [float(any(group)) for group in groups.values()]
        pass_at_g = f"pass@{self.args.group_size}"
        metrics = {
            **summarize(sample.rows),
            **sample.metrics,
            pass_at_g: mean(solved),
            f"{pass_at_g}_stderr": standard_error(solved),
            "kept": len(kept),
            "kept_share": len(kept) / len(sample.rows),
            "questions_kept_share": len({rollout.prompt for rollout in kept}) / len(groups),
            "tokens": sum(row.length for row in sample.rows),
        }
        return {f"rollout_{name}": value for name, value in metrics.items()}

    def _log_rollouts(self, step: EIStep) -> None:
        Trainer.log(self, {**step.metrics, "ei_step": step.number})

    def _rollouts_on_disk(self, number: int) -> tuple[EIStep, list[KeptRollout]]:
        """What `collect_rollouts` gave in an earlier session of this run."""
        step, kept, is_logged = self.ei_steps[number - 1], [], True
        if self.accelerator.is_main_process:
            kept = read_kept(self.run_folder, number)
            # The session may have ended after they were written and before they were logged.
            is_logged = any(
                line.get("ei_step") == number and "rollout_accuracy" in line
                for line in read_metrics(self.run_folder)
            )
        kept, is_logged = from_main((kept, is_logged))
        if not is_logged:
            self._log_rollouts(step)
        return step, kept


class _EndOfEIStep(TrainerCallback):
    """Asks for validation and checkpoints at the ends of EI steps; ends the run after the last."""

    def __init__(self, trainer: ExpertIterationTrainer) -> None:
        self._trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config, trainer = self._trainer.args, self._trainer
        step = trainer.step_of_update(state.global_step - 1)
        if state.global_step == step.end:
            control.should_evaluate = trainer._is_due(step.number, config.eval_every)
            control.should_save = trainer._is_due(step.number, config.save_every)
            control.should_training_stop = step.number == config.n_ei_steps
        elif config.save_every_updates and state.global_step % config.save_every_updates == 0:
            control.should_save = True
