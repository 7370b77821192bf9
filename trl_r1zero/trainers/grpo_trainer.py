"""GRPO on TRL's `GRPOTrainer`: rollouts as rows, three axes, one optimizer step at a time.

TRL and transformers load, wrap, run the optimizer loop, save and log. Replaced are:

* rollouts: rows without padding, of which the training step cuts its micro-batches itself (to the
  loop of transformers `args.gradient_accumulation_steps` is 1); rows without advantage are not run;
* truncation: it is what the sampler says, not "the last token is no eos", so a completion that ends
  in `</answer>` is complete;
* evaluation: one call over all validation problems, with standard errors.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_r1zero.evaluation import write_generations
from trl_r1zero.functional import compute_group_advantages, soft_overlong_penalty
from trl_r1zero.generation import Completion, row_seeds

from .collective import means_of
from .core_trainer import CoreTrainer
from .grpo_config import R1ZeroGRPOConfig
from .grpo_loss import keep_fixed_log_probs, response_kl, rollout_loss
from .microbatches import padded_share
from .problem_sampling import ProblemSampler
from .rewards import as_trl_rewards, extra_columns, grade_with, grade_with_trl, grader_of
from .rollout_sampler import RolloutSampler
from .rollouts import (
    LENGTH_REWARD,
    MicroBatch,
    Rollout,
    RolloutBatch,
    make_microbatch,
    num_trained_tokens,
    untrained,
)
from .rollouts_ahead import RolloutsAhead
from .token_tables import write_rollout_tokens
from .trl_compat import GRPOTrainer
from .update_metrics import UpdateMetrics, graded_rollout
from .validation import EvalDataset, require_columns, require_for_validation


class R1ZeroGRPOTrainer(CoreTrainer, GRPOTrainer):
    """Trains a causal language model with verifiable rewards.

    Args:
        model: A model, or the path or hub id of one.
        reward_funcs: `reward_fn(response, ground_truth) -> dict` with `reward` and its parts, or
            what TRL's trainer takes (functions of its signature, reward models, lists of them).
        args: The settings.
        train_dataset: Columns `prompt` (formatted text) and `ground_truth`.
        eval_dataset: The same columns, in one set or in several by name, of which the first picks
            the best model; needed unless `eval_every` is None.
        processing_class: The tokenizer; the model's own by default.
        stop: Strings, and ids of tokens, that end a completion; a `Prompt` carries them.
        callbacks, optimizers, peft_config, quantization_config: As in TRL's trainer.

    Raises:
        ValueError: A data set lacks a column, a prompt leaves no room in the context, or settings
            contradict one another.
        VLLMServerError: With use_vllm, there is no server, or it cannot be started.
    """

    args: R1ZeroGRPOConfig
    step_key = "grpo_step"
    step_name = "GRPO step"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: R1ZeroGRPOConfig,
        train_dataset: Dataset,
        eval_dataset: EvalDataset = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        stop: Sequence[str | int] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(name, dataset)
        require_for_validation(args.eval_every, eval_dataset=eval_dataset)
        if args.temperature <= 0:
            raise ValueError(f"temperature must be above 0 to explore, got {args.temperature}")
        given, args = args, args.for_transformers()
        args.use_vllm = False  # TRL would connect a client of its own
        rewards = as_trl_rewards(reward_funcs)
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            quantization_config=quantization_config,
            given=given,
            longest_row=lambda: (
                self.sampler.longest(train_dataset["prompt"]) + self.rollout_sampling.max_tokens
            ),
        )
        self.args.use_vllm = given.use_vllm
        if args.cast_lm_head_to_fp32 and not self.fused_lm_head:
            raise ValueError("cast_lm_head_to_fp32 needs the fused head; set fused_lm_head to true")
        # A single reward that grades by itself needs nothing of TRL's.
        grader = None if len(rewards) > 1 or args.reward_weights else grader_of(rewards[0])
        self.grade = grade_with_trl(self) if grader is None else grade_with(grader)
        self.rollout_sampling = args.rollout_sampling(stop)
        self.set_up_sampling(self.grade, args.validation_sampling(stop))
        self.rollouts_ahead = self._sample_ahead() if args.max_staleness else None
        self.problems = self._choose_problems()
        self.update_metrics = UpdateMetrics()
        self._rollout_batch: RolloutBatch | None = None

    @property
    def grpo_step(self) -> int:
        """GRPO steps that are complete; during a step, those before it."""
        return self.state.global_step // self.args.updates_per_grpo_step

    @property
    def steps_done(self) -> int:
        return self.grpo_step

    @property
    def num_steps(self) -> int:
        return self.args.n_grpo_steps

    @property
    def may_stop(self) -> bool:
        # A checkpoint within a step has no rollouts: the step's other updates would be on new ones.
        return self.state.global_step % self.args.updates_per_grpo_step == 0

    def _sample_ahead(self) -> RolloutsAhead:
        args = self.args
        return RolloutsAhead(
            self.sampler,
            self.rollout_sampling,
            self._prompts_and_seeds,
            args.n_grpo_steps,
            args.max_staleness or 0,
            args.updates_per_grpo_step,
            self.timer,
        )

    def _choose_problems(self) -> ProblemSampler | None:
        if (settings := self.args.problems) is None:
            return None
        sample, say = self.sample_and_grade, self.progress.say
        problems = ProblemSampler(
            settings, self.args, self.train_dataset, self.accelerator, sample, say, self.timer
        )
        self.add_callback(problems)
        return problems

    def begin(self, checkpoint: str | None) -> None:
        if self.problems is not None and checkpoint is None:
            self.problems.identify(self.model, self.rollout_sampling, self.reward_funcs)
        if self.rollouts_ahead is not None and checkpoint is not None:
            self.rollouts_ahead.load(Path(checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.rollouts_ahead is not None:  # first, so that a whole checkpoint has it
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.rollouts_ahead.save(self.run_folder / name)
        super()._save_checkpoint(model, trial)

    # Data

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return RolloutSampler(
            self.train_dataset if dataset is None else dataset,
            prompts_per_rollout_batch=self.args.rollout_batch_size // self.args.group_size,
            group_size=self.args.group_size,
            updates_per_grpo_step=self.args.updates_per_grpo_step,
            n_grpo_steps=self.args.n_grpo_steps,
            shuffle=bool(self.args.shuffle_dataset),
            seed=self.args.seed,
        )

    def _prompts_and_seeds(self, step: int) -> tuple[list[str], Sequence[int]]:
        """Of the rollout batch of a step, from 0, of all processes."""
        sampler: Any = self._get_train_sampler()
        prompts = self.train_dataset.select(sampler.prompts_of(step))["prompt"]
        repeated = [prompt for prompt in prompts for _ in range(self.args.group_size)]
        return repeated, row_seeds(self.args.seed, "rollout", step, range(len(repeated)))

    # The steps of the README

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """One optimizer update: forward and backward of every micro-batch of the train batch.

        Returns:
            The loss of the train batch (on this process; the mean over processes is the loss).
        """
        model.train()
        args, update = self.args, self.state.global_step % self.args.updates_per_grpo_step
        with self.timer.part("step"):
            # 1 to 5: a rollout batch for the GRPO step's first update
            if update == 0 or self._rollout_batch is None:
                self._rollout_batch = self.collect_rollouts(inputs)
            # 6. Update
            rows = self._rollout_batch.train_batch(
                update % args.updates_per_epoch, args.updates_per_epoch
            )
            loss = self.forward_and_backward(model, self.cut(rows))
        self._record_update(rows, self._rollout_batch.metrics)
        if update == args.updates_per_grpo_step - 1:
            file, batch = self._rollouts_file.with_suffix(".jsonl"), self._rollout_batch
            write_rollout_tokens(batch.rollouts, self.sampler.tokenizer, file, self.accelerator)
        return loss  # 7. Validate: where it is due, the loop of transformers calls `evaluate`

    def collect_rollouts(self, examples: Sequence[dict[str, Any]]) -> RolloutBatch:
        """Sample and grade one completion for each example, and compute the advantages.

        Args:
            examples: This process's share of the rollout batch: each prompt `group_size` times in a
                row (a group may go on in the next process).
        """
        args = self.args
        # 1 to 3. Take prompts, sample, grade
        if self.problems is None:
            start = self.accelerator.process_index * len(examples)
            numbers = range(start, start + len(examples))
            seeds = row_seeds(args.seed, "rollout", self.grpo_step, numbers)
            batch = self.sample_and_grade(examples, seeds)
        else:
            batch = self.problems.collect(self.grpo_step, self.state)
        self.state.num_input_tokens_seen += batch.sampled_tokens
        # 4. Compare
        self._set_advantages(batch)
        batch.metrics |= batch.statistics() | self.sampler.idle_shares()
        if self.rollouts_ahead is not None:
            batch.metrics["server_idle_seconds"] = self.rollouts_ahead.server_idle_seconds
        # 5. Remember
        keep_fixed_log_probs(
            self.policy, batch, self.cut, self.timer, num_updates=self.state.global_step
        )
        self._write_rollouts(batch)
        return batch

    def sample_and_grade(
        self, examples: Sequence[dict[str, Any]], seeds: Sequence[int], description: str = ""
    ) -> RolloutBatch:
        """One graded rollout for each of this process's examples, as many on each, and their seeds;
        those of all processes, without advantages. `description`: of the progress bar."""
        args, accelerator = self.args, self.accelerator
        prompts = [example["prompt"] for example in examples]
        title = description or f"Rollouts of GRPO step {self.grpo_step + 1}"
        with self.timer.part("generation"):
            prompt_ids, completions = self._sample(prompts, seeds, title)
        with self.timer.part("reward"):
            grades, metrics = self.grade(examples, completions)
        rollouts = [
            Rollout(
                prompt=example["prompt"],
                ground_truth=example["ground_truth"],
                prompt_ids=ids,
                completion=completion,
                rewards={"reward": grade.reward, **grade.parts},
                advantage=math.nan,
                trained=not (args.mask_truncated_completions and completion.truncated),
                extra=extra,
            )
            for example, ids, completion, grade, extra in zip(
                examples, prompt_ids, completions, grades, extra_columns(grades), strict=True
            )
        ]
        if args.overlong_buffer is not None:
            lengths = torch.tensor([row.length for row in rollouts])
            most = args.max_completion_length or 0
            lost = soft_overlong_penalty(lengths, most, args.overlong_buffer)
            for row, penalty in zip(rollouts, lost.tolist(), strict=True):
                row.rewards[LENGTH_REWARD] = args.overlong_penalty * penalty
        return RolloutBatch(
            # All of them: who trains on which follows from their lengths.
            rollouts=gather_object(rollouts) if accelerator.num_processes > 1 else rollouts,
            group_size=args.group_size,
            metrics=means_of(metrics, accelerator),
        )

    def _set_advantages(self, batch: RolloutBatch) -> None:
        args = self.args
        rewards = torch.tensor([row.training_reward for row in batch.rollouts])
        if args.kl_in_reward:
            penalties, mean = response_kl(self.policy, batch, self.cut, self.timer)
            rewards, batch.metrics["kl"] = rewards - args.beta * penalties, mean
        advantages = compute_group_advantages(
            rewards, args.group_size, args.loss.advantage, args.advantage_eps
        )
        for row, advantage in zip(batch.rollouts, advantages.tolist(), strict=True):
            row.advantage = advantage

    def _sample(
        self, prompts: list[str], seeds: Sequence[int], description: str
    ) -> tuple[list[list[int]], list[Completion]]:
        if self.rollouts_ahead is not None:
            return self.rollouts_ahead.sample(self.grpo_step, prompts, seeds, description)
        return self.sampler.sample(prompts, self.rollout_sampling, seeds, description)

    # Micro-batches

    def cut(self, rows: Sequence[Rollout]) -> list[MicroBatch]:
        """This process's micro-batches of a train batch.

        Rows whose gradient is 0 are in the denominators only. If that is all of them, a row that is
        not in the loss makes a gradient of zeros.
        """
        processes = self.policy.processes
        return [
            make_microbatch(
                part,
                pad_token_id=self.sampler.tokenizer.pad_token_id,
                device=self.accelerator.device,
                num_sequences=len(rows) / processes,
                num_tokens=num_trained_tokens(rows) / processes,
            )
            for part in self._plan(rows)[self.policy.rank]
        ]

    def _plan(self, rows: Sequence[Rollout]) -> list[list[list[Rollout]]]:
        to_run = self._rows_to_run(rows)
        return self.policy.plan(
            to_run or [untrained(min(rows, key=lambda row: row.num_tokens))], untrained
        )

    def _rows_to_run(self, rows: Sequence[Rollout]) -> list[Rollout]:
        args = self.args
        if args.skip_zero_advantages and not args.kl_in_loss and args.entropy_coef == 0:
            return [row for row in rows if row.has_gradient]
        return [row for row in rows if row.trained]

    def _compute_loss(self, model: torch.nn.Module, inputs: MicroBatch) -> Tensor:
        """This micro-batch's share of the loss of its train batch."""
        return rollout_loss(self.policy, model, inputs, self.update_metrics)

    # Logging

    def _record_update(self, rows: list[Rollout], batch_metrics: dict[str, float]) -> None:
        """Metrics of one optimizer update, over all processes."""
        args = self.args
        metrics = self.update_metrics.collect(self.policy.own_rows(rows), self.accelerator)
        metrics["skipped_rows"] = 1 - len(self._rows_to_run(rows)) / len(rows)
        metrics["padding"] = padded_share(
            [part for parts in self._plan(rows) for part in parts], self.policy.limits
        )
        parts = ["step", "generation", "reward", "forward", "backward"]
        parts += ["rollout_wait"] if args.max_staleness else []
        parts += self.sampler.timed_parts
        parts += ["old_log_probs"] if args.updates_per_grpo_step > 1 else []
        parts += ["ref_log_probs"] if args.beta != 0 else []
        self.log_update(metrics | batch_metrics, self.grpo_step + 1, parts)

    @property
    def _rollouts_file(self) -> Path:
        return self.run_folder / "rollouts" / f"grpo_step_{self.grpo_step + 1:05d}"

    def _write_rollouts(self, batch: RolloutBatch) -> None:
        step, every = self.grpo_step + 1, self.args.log_rollouts_every
        if every is None or not (step == 1 or step % every == 0):
            return
        rows = batch.rollouts[: self.args.num_rollouts_to_log]
        for row in rows:
            row.logged = True
        if self.accelerator.is_main_process:
            title = f"Rollouts of GRPO step {step}"
            rows_shown = [graded_rollout(row) for row in rows]
            write_generations(rows_shown, self._rollouts_file, title=title)
