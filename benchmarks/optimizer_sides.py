"""One train batch's forward and backward in TRL's `GRPOTrainer`, and in `R1ZeroGRPOTrainer`.

Both sides get the same stored rollouts, by public ways: TRL's trainer through its `rollout_func`
and a reward function that gives out the stored rewards; ours through `collect_rollouts`. Then their
own `training_step` runs: of TRL's once per micro-batch, of ours once.

What counts as the optimizer phase is all of `training_step` except TRL's
`_generate_and_score_completions` and our `collect_rollouts`, where completions are padded (TRL's),
decoded and graded and advantages are computed. What TRL spends there is reported beside it. Both
phases have the metrics that the trainers gather as they train; neither has the optimizer's step.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from paired import Seconds, now
from rollout_workloads import StoredBatch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.functional import compute_group_advantages
from trl_r1zero.generation import Completion
from trl_r1zero.trainers.rollouts import Rollout, RolloutBatch


@dataclass(frozen=True)
class LossPair:
    """The same loss, on-policy and without KL term, in TRL's settings and in ours."""

    stock: Mapping[str, Any]
    ours: Mapping[str, Any]


# Surrogate: on-policy the ratio is 1 and never clipped, so that TRL's clipped surrogate has the
# gradient of `-A ln pi`, which is that of reinforce_with_baseline.
LOSSES = {
    "dr_grpo": LossPair(
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"use_std_normalization": False, "aggregation": "masked_normalize"},
    ),
    "grpo": LossPair(
        {"loss_type": "grpo", "scale_rewards": "group"},
        # TRL's epsilon is fixed.
        {"use_std_normalization": True, "advantage_eps": 1e-4, "aggregation": "masked_mean"},
    ),
    "dapo": LossPair(
        {"loss_type": "dapo", "scale_rewards": "group"},
        {"use_std_normalization": True, "advantage_eps": 1e-4, "aggregation": "token_mean"},
    ),
}


@dataclass(frozen=True)
class Settings:
    """What both sides share.

    Attributes:
        loss: A key of `LOSSES`.
        num_rollouts: Rows of the train batch, which is the rollout batch.
        group_size: Rows per prompt.
        max_completion_length: dr_grpo's divisor.
        autocast: Whether to compute in bfloat16 on float32 weights.
        device: Where.
        output_dir: For what the trainers might write; they write nothing here.
    """

    loss: str
    num_rollouts: int
    group_size: int
    max_completion_length: int
    autocast: bool
    device: torch.device
    output_dir: str

    def shared_arguments(self) -> dict[str, Any]:
        return {
            "output_dir": self.output_dir,
            "max_completion_length": self.max_completion_length,
            "temperature": 1.0,
            "beta": 0.0,
            "bf16": self.autocast,
            "gradient_checkpointing": False,
            "use_cpu": self.device.type == "cpu",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }


@dataclass(frozen=True)
class Phase:
    """What one train batch took: the optimizer phase, and what came before it in the trainer."""

    optimizer: Seconds
    before: Seconds


class StockSide:
    """TRL's trainer, micro-batches of `rows` rows."""

    name = "TRL"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        rows: int,
    ) -> None:
        self.device = settings.device
        self.num_microbatches = settings.num_rollouts // rows
        self._examples = _examples(settings.num_rollouts)
        config = GRPOConfig(
            **settings.shared_arguments(),
            **LOSSES[settings.loss].stock,
            num_generations=settings.group_size,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=self.num_microbatches,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            self.trainer = _TimedGRPOTrainer(
                model=model,
                reward_funcs=self._rewards,
                args=config,
                train_dataset=Dataset.from_list(self._examples),
                processing_class=tokenizer,
                rollout_func=self._rollouts,
            )
        # What TRL's training loop sets before it calls `training_step`.
        self.trainer.current_gradient_accumulation_steps = self.num_microbatches
        self.model = _on_device(self.trainer)

    def _rollouts(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        batch = self._batch
        return {
            "prompt_ids": batch.prompt_ids,
            "completion_ids": batch.completion_ids,
            "logprobs": None,
        }

    def _rewards(self, completions: list[str], **_: Any) -> list[float | None]:
        return [*self._batch.rewards]

    def run(self, batch: StoredBatch) -> Phase:
        """Forward and backward of the batch; the gradient is in the model's parameters then."""
        self._batch = batch
        self.model.zero_grad(set_to_none=True)
        self.trainer.before = Seconds(0.0, 0.0)
        start = now(self.device)
        for _ in range(self.num_microbatches):
            self.trainer.training_step(self.model, self._examples, None)
        whole = now(self.device) - start
        return Phase(whole - self.trainer.before, self.trainer.before)


class _TimedGRPOTrainer(GRPOTrainer):
    """TRL's trainer, with a clock around what it does with rollouts before it trains on them."""

    before = Seconds(0.0, 0.0)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        start = now(self.accelerator.device)
        output = super()._generate_and_score_completions(inputs)
        self.before = now(self.accelerator.device) - start
        return output


class OurSide:
    """Our trainer; `overrides` are settings of `R1ZeroGRPOConfig` that say how it cuts."""

    name = "trl-r1zero"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        overrides: Mapping[str, Any],
    ) -> None:
        self.device = settings.device
        self._examples = _examples(settings.num_rollouts)
        loss = LOSSES[settings.loss].ours
        arguments = {
            **settings.shared_arguments(),
            **loss,
            "loss_type": "reinforce_with_baseline",
            "n_grpo_steps": 1,
            "rollout_batch_size": settings.num_rollouts,
            "train_batch_size": settings.num_rollouts,
            "group_size": settings.group_size,
            "eval_every": None,
            "save_every": None,
            "log_rollouts_every": None,
            **overrides,
        }
        self.trainer = _StoredRolloutsTrainer(
            model=model,
            reward_funcs=_no_reward,
            args=R1ZeroGRPOConfig(**arguments),
            train_dataset=Dataset.from_list(self._examples),
            processing_class=tokenizer,
        )
        self.model = _on_device(self.trainer)
        self.fused_lm_head: bool = self.trainer.fused_lm_head

    def run(self, batch: StoredBatch) -> Phase:
        """Forward and backward of the batch; the gradient is in the model's parameters then."""
        self.trainer.stored = self._stored(batch)
        self.model.zero_grad(set_to_none=True)
        start = now(self.device)
        self.trainer.training_step(self.model, self._examples)
        return Phase(now(self.device) - start, Seconds(0.0, 0.0))

    def _stored(self, batch: StoredBatch) -> RolloutBatch:
        args = self.trainer.args
        advantages = compute_group_advantages(
            torch.tensor(batch.rewards), batch.group_size, args.advantage, args.advantage_eps
        )
        rollouts = [
            Rollout(
                prompt="",
                ground_truth="",
                prompt_ids=prompt_ids,
                completion=Completion(completion_ids, "", "stop"),
                rewards={"reward": reward},
                advantage=advantage,
            )
            for prompt_ids, completion_ids, reward, advantage in zip(
                batch.prompt_ids,
                batch.completion_ids,
                batch.rewards,
                advantages.tolist(),
                strict=True,
            )
        ]
        return RolloutBatch(rollouts, batch.group_size)


class _StoredRolloutsTrainer(R1ZeroGRPOTrainer):
    """Our trainer, whose rollouts are there already."""

    stored: RolloutBatch

    def collect_rollouts(self, examples: Sequence[dict[str, Any]]) -> RolloutBatch:
        return self.stored


def _no_reward(response: str, ground_truth: Any) -> dict[str, float]:
    raise RuntimeError("stored rollouts are graded already")


def _examples(number: int) -> list[dict[str, str]]:
    """Rows of a data set that nothing looks at."""
    return [{"prompt": f"question {i}", "ground_truth": ""} for i in range(number)]


def _on_device(trainer: Any) -> torch.nn.Module:
    """The trainer's model where it trains, wrapped as the training loop wraps it."""
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    return trainer.model_wrapped


# Gradients


@dataclass(frozen=True)
class GradientDifference:
    """Two gradients of all parameters, taken as one vector each.

    Attributes:
        max_abs: The largest difference of an element.
        relative_l2: L2 norm of the difference over that of TRL's gradient.
        norm: The latter.
    """

    max_abs: float
    relative_l2: float
    norm: float


def copy_gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradient by parameter, on the CPU."""
    return {
        name: parameter.grad.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def gradient_difference(
    stock: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> GradientDifference:
    """How far our gradient is from TRL's.

    Raises:
        ValueError: They are of other parameters, or there is no gradient at all.
    """
    if stock.keys() != ours.keys() or not stock:
        raise ValueError(
            f"gradients of different parameters: {sorted(stock.keys() ^ ours.keys())}, of "
            f"{len(stock)} and {len(ours)}"
        )
    largest = squares = reference = 0.0
    for name, gradient in stock.items():
        difference = gradient.double() - ours[name].double()
        largest = max(largest, difference.abs().max().item())
        squares += difference.square().sum().item()
        reference += gradient.double().square().sum().item()
    if reference == 0:
        raise ValueError("the gradient is zero: no group of the batch has an advantage")
    return GradientDifference(largest, math.sqrt(squares / reference), math.sqrt(reference))
