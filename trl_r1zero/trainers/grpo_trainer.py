"""GRPO on TRL's `GRPOTrainer`: rollouts as rows, three axes, one optimizer step at a time.

One GRPO step, in the order of the code:

1. `collect_rollouts`: sample `group_size` completions of each prompt of a rollout batch, grade
   them, and compare each reward with its group (`compute_group_advantages`).
2. If the batch is trained on more than once, keep the sampling policy's log-probabilities.
3. `training_step`, once per optimizer update: take the update's rows, cut them into micro-batches,
   and for each one `_compute_loss` (`grpo_microbatch_loss`) and backward.
4. `evaluate` (in `validation`), every `eval_every` GRPO steps: one pass over the validation
   problems.

What comes from TRL and transformers: loading, PEFT and the reference model, Accelerate and
DeepSpeed, the vLLM client, the reward loop, the optimizer loop, checkpoints, logging. What is
replaced, and why:

* rollouts are kept as rows without padding, and the training step cuts its train batch itself (see
  `microbatches`): to the loop of transformers `args.gradient_accumulation_steps` is 1.
* rows without advantage are not run, old log-probabilities come from the first pass over a row, and
  logits are computed at response positions only.
* truncation is what the sampler says, not "the last token is no eos": a completion that ends in
  `</answer>` is complete.
* evaluation is one call over all validation problems, with standard errors, not a loop over
  batches whose means are averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from trl_r1zero.evaluation import write_generations
from trl_r1zero.evaluation.metrics import mean_over_tokens
from trl_r1zero.functional import (
    compute_group_advantages,
    compute_sampler_importance_weights,
    grpo_microbatch_loss,
)
from trl_r1zero.generation import SamplingConfig, row_seeds

from .grpo_config import R1ZeroGRPOConfig
from .microbatches import padded_share, plan_microbatches
from .rewards import as_trl_rewards, extra_columns, grade_with, grade_with_trl, grader_of
from .rollout_sampler import RolloutSampler
from .rollouts import (
    MicroBatch,
    Rollout,
    RolloutBatch,
    make_microbatch,
    num_trained_tokens,
    sampler_log_probs,
    store_log_probs,
    untrained,
)
from .rollouts_ahead import RolloutsAheadMixin
from .trl_grpo import GRPOTrainer
from .update_metrics import graded_rollout
from .validation import require_columns


class R1ZeroGRPOTrainer(RolloutsAheadMixin, GRPOTrainer):
    """Trains a causal language model with verifiable rewards.

    Args:
        model: A model, or the path or hub id of one.
        reward_funcs: `reward_fn(response, ground_truth) -> dict` with `reward` and its parts, or
            what TRL's trainer takes (functions of its signature, reward models, lists of them).
        args: The settings.
        train_dataset: Columns `prompt` (formatted text) and `ground_truth`.
        eval_dataset: The same columns; needed unless `eval_every` is None.
        processing_class: The tokenizer; the model's own by default.
        stop: Strings that end a completion, kept in it; a `Prompt` carries them.
        callbacks, optimizers, peft_config, quantization_config: As in TRL's trainer.

    Raises:
        ValueError: A data set lacks a column, or settings contradict one another.
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
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        stop: Sequence[str] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            require_columns(name, dataset)
        if args.eval_every is not None and eval_dataset is None:
            raise ValueError(
                "eval_every is set, but there is no eval_dataset; give one, or set it to None"
            )
        if args.temperature <= 0:
            raise ValueError(f"temperature must be above 0 to explore, got {args.temperature}")
        self._take_limits(args)
        use_vllm = args.use_vllm
        args = args.for_transformers()
        rewards = as_trl_rewards(reward_funcs)
        # One that grades by itself needs nothing of TRL's.
        grader = grader_of(rewards[0]) if len(rewards) == 1 and not args.reward_weights else None
        args.use_vllm = False  # TRL would connect a client of its own
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
        )
        # transformers takes it from `args.train_batch_size`, which to it is one process's share;
        # here that name is the handout's, for all processes together.
        self._train_batch_size = args.train_batch_share
        self.rollout_sampling = SamplingConfig(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p or 0.0,
            max_tokens=args.max_completion_length or 1,
            min_tokens=args.min_tokens,
            stop=tuple(stop),
        )
        self.eval_sampling = replace(
            self.rollout_sampling,
            temperature=args.eval_temperature,
            top_p=args.eval_top_p,
            max_tokens=args.eval_max_completion_length or self.rollout_sampling.max_tokens,
        )
        self._rollout_batch: RolloutBatch | None = None
        self._grade = grade_with_trl(self) if grader is None else grade_with(grader)
        self.args.use_vllm = use_vllm
        self._set_up()
        if args.cast_lm_head_to_fp32 and not self.fused_lm_head:
            raise ValueError("cast_lm_head_to_fp32 needs the fused head; set fused_lm_head to true")

    @property
    def grpo_step(self) -> int:
        """GRPO steps that are complete, or the one at work during it."""
        return self.state.global_step // self.args.updates_per_grpo_step

    @property
    def steps_done(self) -> int:
        return self.grpo_step

    @property
    def num_steps(self) -> int:
        return self.args.n_grpo_steps

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

    def _prompts_of_step(self, step: int) -> list[str]:
        sampler: Any = self._get_train_sampler()
        return self.train_dataset.select(sampler.prompts_of(step))["prompt"]

    # 1. Rollouts

    def collect_rollouts(self, examples: Sequence[dict[str, Any]]) -> RolloutBatch:
        """Sample and grade one completion for each example, and compute the advantages.

        Args:
            examples: This process's share of the rollout batch: each prompt `group_size` times in a
                row (a group may go on in the next process).
        """
        step, rank = self.grpo_step, self.accelerator.process_index
        rows = range(rank * len(examples), (rank + 1) * len(examples))
        with self.timer.part("generation"):
            prompt_ids, completions = self._sample_rollouts(
                step,
                [example["prompt"] for example in examples],
                row_seeds(self.args.seed, "rollout", step, rows),
            )
        with self.timer.part("reward"):
            grades, metrics = self._grade(examples, completions)
        rewards = torch.tensor([grade.reward for grade in grades], device=self.accelerator.device)
        advantages = compute_group_advantages(
            self.accelerator.gather(rewards).cpu(),
            self.args.group_size,
            self.args.advantage,
            self.args.advantage_eps,
        )
        advantages_NG = advantages.view(-1, self.args.group_size)
        local = slice(rows.start, rows.stop)
        rollouts = [
            Rollout(
                prompt=example["prompt"],
                ground_truth=example["ground_truth"],
                prompt_ids=ids,
                completion=completion,
                rewards={"reward": grade.reward, **grade.parts},
                advantage=advantage,
                trained=not (self.mask_truncated_completions and completion.truncated),
                extra=extra,
            )
            for example, ids, completion, grade, extra, advantage in zip(
                examples,
                prompt_ids,
                completions,
                grades,
                extra_columns(grades),
                advantages[local].tolist(),
                strict=True,
            )
        ]
        self._count_tokens(sum(row.num_tokens for row in rollouts))
        batch = RolloutBatch(
            # All of them: who trains on which follows from their lengths.
            rollouts=gather_object(rollouts) if self.accelerator.num_processes > 1 else rollouts,
            group_size=self.args.group_size,
            metrics={
                "zero_advantage_groups": (advantages_NG == 0).all(dim=1).float().mean().item(),
                **self._means_of(metrics),
                **self._ahead_metrics(),
            },
        )
        entropy = mean_over_tokens(
            [graded_rollout(row) for row in batch.rollouts],
            [row.completion.mean_entropy for row in batch.rollouts],
        )
        if not math.isnan(entropy):
            batch.metrics["rollout_entropy"] = entropy
        self._keep_fixed_log_probs(batch)
        self._write_rollouts(batch)
        return batch

    # 2. Log-probabilities under a fixed policy

    def _keep_fixed_log_probs(self, batch: RolloutBatch) -> None:
        """Those of the sampling policy and of the reference, as far as the updates need them."""
        number = self.args.updates_per_epoch
        train_batches = [batch.train_batch(index, number) for index in range(number)]
        if self.args.old_log_probs == "sampler":
            for row in batch.rollouts:
                row.old_log_probs = sampler_log_probs(row)
                if row.old_log_probs is None:
                    raise ValueError(
                        "old_log_probs is sampler, but the completions have no log-probabilities; "
                        "set it to policy"
                    )
        elif self.args.updates_per_grpo_step > 1:
            # The first update's own forward pass gives those of its rows: the policy has not moved.
            at_work = self.state.global_step % number
            self._make_room()
            with self.timer.part("old_log_probs"):
                for index, rows in enumerate(train_batches):
                    if index != at_work or self._has_dropout:
                        self._keep_log_probs(self.model, rows, "old_log_probs")
        if self.beta != 0:
            self._make_room()
            with self.timer.part("ref_log_probs"):
                for rows in train_batches:
                    self._keep_reference_log_probs(rows)

    @cached_property
    def _has_dropout(self) -> bool:
        """Whether a forward pass in training differs from one in sampling."""
        config = self.model.config.get_text_config()
        in_attention = (getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
        in_modules = (m.p for m in self.model.modules() if isinstance(m, torch.nn.Dropout))
        return any(p > 0 for p in (*in_attention, *in_modules))

    def _keep_log_probs(self, model: Any, rollouts: list[Rollout], attribute: str) -> None:
        was_training = model.training
        model.eval()  # no dropout, as in sampling
        with torch.no_grad():
            for micro_batch in self._microbatches(rollouts):
                output = self._log_probs(model, micro_batch, self.args.temperature)
                store_log_probs(micro_batch, output["log_probs"], attribute)
        model.train(was_training)

    def _keep_reference_log_probs(self, rollouts: list[Rollout]) -> None:
        if self.ref_model is not None:
            self._keep_log_probs(self.ref_model, rollouts, "ref_log_probs")
            return
        with self._base_policy():
            self._keep_log_probs(self.model, rollouts, "ref_log_probs")

    # 3. Optimizer updates

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """One optimizer update: forward and backward of every micro-batch of the train batch.

        Returns:
            The loss of the train batch (on this process; the mean over processes is the loss).
        """
        model.train()
        with self.timer.part("step"):
            update = self.state.global_step % self.args.updates_per_grpo_step
            if update == 0 or self._rollout_batch is None:
                self._rollout_batch = self.collect_rollouts(inputs)
            rows = self._rollout_batch.train_batch(
                update % self.args.updates_per_epoch, self.args.updates_per_epoch
            )
            loss = self._forward_and_backward(model, self._microbatches(rows))
        self._record_update(rows)
        return loss

    def _microbatches(self, rows: Sequence[Rollout]) -> list[MicroBatch]:
        """This process's micro-batches of a train batch.

        Rows whose gradient is 0 are in the denominators only. If that is all of them, a row that is
        not in the loss makes a gradient of zeros.
        """
        rank, processes = self._rank_and_size()
        plan = self._plan(rows)
        return [
            make_microbatch(
                part,
                pad_token_id=self._tokenizer.pad_token_id,
                device=self.accelerator.device,
                num_sequences=len(rows) / processes,
                num_tokens=num_trained_tokens(rows) / processes,
            )
            for part in plan[rank]
        ]

    def _longest_row(self) -> int:
        return self._longest_prompt() + self.rollout_sampling.max_tokens

    def _plan(self, rows: Sequence[Rollout]) -> list[list[list[Rollout]]]:
        return plan_microbatches(
            self._rows_to_run(rows) or [untrained(min(rows, key=lambda row: row.num_tokens))],
            self._rank_and_size()[1],
            self._limits,
            untrained,
        )

    def _rows_to_run(self, rows: Sequence[Rollout]) -> list[Rollout]:
        if self.args.skip_zero_advantages and self.beta == 0:
            return [row for row in rows if row.has_gradient]
        return [row for row in rows if row.trained]

    def _compute_loss(self, model: torch.nn.Module, inputs: MicroBatch) -> Tensor:
        """This micro-batch's share of the loss of its train batch."""
        output = self._log_probs(model, inputs, self.args.temperature, return_token_entropy=True)
        # Before the first update on a rollout batch the sampling policy is the policy itself.
        old_log_probs_BT = output["log_probs"].detach()
        if inputs.old_log_probs is not None:
            # NaN stands for what the sampler could not tell.
            old_log_probs_BT = inputs.old_log_probs.where(
                ~inputs.old_log_probs.isnan(), old_log_probs_BT
            )
        elif self.args.updates_per_grpo_step > 1:
            store_log_probs(inputs, old_log_probs_BT, "old_log_probs")
        loss, metadata = grpo_microbatch_loss(
            output["log_probs"],
            inputs.response_mask,
            self.args.loss_type,
            raw_rewards=inputs.raw_rewards,
            advantages=inputs.advantages,
            old_log_probs=old_log_probs_BT,
            cliprange=self.args.clip_bounds,
            ref_log_probs=inputs.ref_log_probs,
            beta=self.beta,
            correct_kl_bias=self.args.use_bias_correction_kl,
            sampler_weights=self._sampler_weights(inputs, old_log_probs_BT),
            aggregation=self.args.aggregation,
            num_sequences=inputs.num_sequences,
            num_tokens=inputs.num_tokens,
            normalize_constant=self.args.sequence_divisor,
        )
        mask_BT = inputs.response_mask
        self._update_metrics.add(
            trained_tokens=mask_BT.sum(),
            entropy=output["token_entropy"].detach()[mask_BT].sum(),
        )
        if "kl" in metadata:
            self._update_metrics.add(kl=metadata["kl"][mask_BT].sum())
        if inputs.old_log_probs is not None or self.args.updates_per_grpo_step > 1:
            log_ratio = (output["log_probs"].detach() - old_log_probs_BT)[mask_BT]
            self._update_metrics.add(ratio=log_ratio.exp().sum())
            if "clipped" in metadata:
                self._update_metrics.add(clip_fraction=metadata["clipped"][mask_BT].sum())
        return loss

    def _sampler_weights(self, inputs: MicroBatch, old_log_probs_BT: Tensor) -> Tensor | None:
        """What corrects for vLLM's probabilities, which are not quite the trainer's; None if off.

        Their difference is logged in either case: it grows when weights fail to reach the server.
        """
        mask_BT, sampler_BT = inputs.response_mask, inputs.sampler_log_probs
        if self.args.old_log_probs == "policy" and self.args.use_vllm and sampler_BT is not None:
            difference = (old_log_probs_BT - sampler_BT)[mask_BT].abs()
            # NaN stands for what the sampler could not tell.
            self._update_metrics.add_values(
                "sampler_log_prob_diff", difference[~difference.isnan()]
            )
        if not self.args.vllm_importance_sampling_correction:
            return None
        if sampler_BT is None:
            raise ValueError(
                "vllm_importance_sampling_correction needs the sampler's log-probabilities, and "
                "the completions have none; set it to false"
            )
        weights = compute_sampler_importance_weights(
            old_log_probs_BT,
            sampler_BT,
            mask_BT,
            self.args.vllm_importance_sampling_mode,
            self.args.vllm_importance_sampling_clip_min,
            self.args.vllm_importance_sampling_clip_max,
        )
        # One weight per token, or per response with tokens.
        weighed = mask_BT if weights.shape == mask_BT.shape else mask_BT.any(dim=1, keepdim=True)
        self._update_metrics.add_values("importance_weight", weights[weighed])
        return weights

    # Logging

    def _record_update(self, rows: list[Rollout]) -> None:
        """Metrics of one optimizer update, over all processes."""
        assert self._rollout_batch is not None
        rank, processes = self._rank_and_size()
        metrics = self._update_metrics.collect(rows[rank::processes], self.accelerator)
        metrics["skipped_rows"] = 1 - len(self._rows_to_run(rows)) / len(rows)
        metrics["padding"] = padded_share(
            [part for parts in self._plan(rows) for part in parts], self._limits
        )
        seconds = self.timer.collect()
        metrics |= self._rollout_batch.metrics
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds["step"]
        parts = ["step", "generation", "reward", "forward", "backward"]
        parts += ["rollout_wait"] if self.args.one_step_off else []
        parts += self._server_parts
        parts += ["old_log_probs"] if self.args.updates_per_grpo_step > 1 else []
        parts += ["ref_log_probs"] if self.beta != 0 else []
        # A part that did not run in this update (sampling, in a second epoch) took 0 seconds.
        metrics |= {f"seconds/{part}": seconds.get(part, 0.0) for part in parts}
        self._log_with_update(
            metrics,
            {"grpo_step": self.grpo_step + 1, "num_tokens": self.state.num_input_tokens_seen},
        )

    def _write_rollouts(self, batch: RolloutBatch) -> None:
        step, every = self.grpo_step + 1, self.args.log_rollouts_every
        if every is None or not (step == 1 or step % every == 0):
            return
        if self.accelerator.is_main_process:
            write_generations(
                [graded_rollout(row) for row in batch.rollouts[: self.args.num_rollouts_to_log]],
                self.run_folder / "rollouts" / f"grpo_step_{step:05d}",
                title=f"Rollouts of GRPO step {step}",
            )
