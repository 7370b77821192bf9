"""Configurations of trainers that train for epochs over rows: supervised fine-tuning, expert
iteration and DPO, on TRL's."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from trl import DPOConfig, SFTConfig

from trl_r1zero.common.arguments import Count, Positive, arg
from trl_r1zero.devices.facts import visible_here

from .base_config import StrictConfig
from .memory_limits import DEFAULT_ROWS
from .sampling_settings import SamplingSettings
from .trl_fields import (
    DPO_DERIVED_FIELDS,
    DPO_UNSUPPORTED_FIELDS,
    EI_DERIVED_FIELDS,
    EI_UNSUPPORTED_FIELDS,
    SFT_DERIVED_FIELDS,
    SFT_UNSUPPORTED_FIELDS,
)

# Schedules that do not ask how many updates there will be.
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup")
OVERLONG = ("drop", "error")


@dataclass
class EpochSettings(StrictConfig):
    """Batches, epochs and lengths of a fixed set of rows."""

    num_train_epochs: float = arg(1, "Passes over the rows, a whole number.")
    train_batch_size: Count = arg(32, "Rows per optimizer update, over all processes.")
    max_length: Count | None = arg(1024, "Tokens of prompt and response at most. null: any number.")
    overlong: str = arg(
        "drop",
        "What becomes of rows above max_length, which are never cut: drop (and say how many), or "
        "error.",
    )
    shuffle_dataset: bool = arg(True, "Shuffle the rows, anew for each epoch, by seed.")
    save_every: Count | None = arg(
        100, "Checkpoint every N optimizer updates and at the end. null: never."
    )

    def _check(self) -> None:
        self._check_train_batch()
        self._check_choice("overlong", OVERLONG)
        epochs = self.num_train_epochs
        if "num_train_epochs" in self.derived_fields:
            return
        if epochs is None or not (epochs >= 1 and float(epochs).is_integer()):
            raise ValueError(f"num_train_epochs must be 1, 2, 3 ..., got {epochs}")

    def _derived_values(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": self.train_batch_share,
            "max_steps": -1,  # the trainer knows, once it has the rows
            **self._evaluation_values(),
            **self._saving_values(self.save_every),
        }


@dataclass
class R1ZeroSFTConfig(EpochSettings, SamplingSettings, SFTConfig):  # type: ignore[misc]
    """All settings of supervised fine-tuning; see each field's help and `SFT_UNSUPPORTED_FIELDS`. A
    ValueError as `CheckedConfig`."""

    derived_fields: ClassVar = SFT_DERIVED_FIELDS
    unsupported_fields: ClassVar = SFT_UNSUPPORTED_FIELDS

    normalize_constant: Positive = arg(
        1.0, "Divisor of each response's sum of token losses (the loss is then averaged over rows)."
    )
    append_eos: bool = arg(
        False, "End each response with the end-of-sequence token (not needed after </answer>)."
    )
    learning_rate: float = arg(2e-5, "Peak learning rate of AdamW.")
    eval_every: Count | None = arg(
        16, "Validate every N optimizer updates, and at start and end. null: never."
    )
    eval_max_completion_length: Count | None = arg(1024, "Validation: new tokens at most.")

    def _check(self) -> None:
        super()._check()
        self._check_server()
        self._check_lengths()
        self.validation_sampling()  # a ValueError says what is out of range

    def _check_lengths(self) -> None:
        self._check_min_tokens("eval_max_completion_length")


@dataclass
class ExpertIterationConfig(R1ZeroSFTConfig):
    """All settings of expert iteration.

    An *EI step* samples `group_size` completions of each of `ei_batch_size` questions with the
    current policy, keeps the correct ones, and trains `sft_epochs_per_step` epochs on them. A
    ValueError as `CheckedConfig`."""

    derived_fields: ClassVar = EI_DERIVED_FIELDS
    unsupported_fields: ClassVar = EI_UNSUPPORTED_FIELDS

    n_ei_steps: Count = arg(5, "EI steps: sample, keep what is correct, train on it.")
    ei_batch_size: Count = arg(512, "Questions sampled per EI step.")
    group_size: Count = arg(8, "Completions per question (G).")
    sft_epochs_per_step: Count = arg(1, "Passes over the kept completions of each EI step.")
    max_per_question: Count | None = arg(
        None, "Keep at most the first N completions of a question. Unset: all."
    )
    drop_duplicates: bool = arg(
        False, "Keep only the first of equal completions of a question in an EI step."
    )
    temperature: float = arg(1.0, "Rollouts: temperature.")
    top_p: float = arg(1.0, "Rollouts: top-p.")
    top_k: int = arg(0, "Rollouts: top-k (0: all tokens).")
    min_p: float = arg(0.0, "Rollouts: min-p.")
    max_completion_length: int = arg(1024, "New tokens per completion at most.")
    eval_max_completion_length: Count | None = arg(
        None, "Validation: new tokens at most. Unset: max_completion_length."
    )
    eval_every: Count | None = arg(
        1, "Validate every N EI steps, and at start and end. null: never."
    )
    save_every: Count | None = arg(1, "Checkpoint every N EI steps and at the end. null: never.")
    save_every_updates: Count | None = arg(
        None, "Checkpoint every N optimizer updates too, inside of EI steps. Unset: never."
    )
    num_rollouts_to_log: Count = arg(64, "Rollouts in the table that each EI step writes.")
    # Derived: None here, so that a value that is set is noticed.
    num_train_epochs: float | None = arg(None, "Derived from sft_epochs_per_step.")  # type: ignore[assignment]

    @property
    def max_updates(self) -> int:
        """Optimizer updates if every rollout is correct, and kept if `max_per_question` admits."""
        kept = min(self.group_size, self.max_per_question or self.group_size)
        rows = self.ei_batch_size * kept
        return self.n_ei_steps * self.sft_epochs_per_step * -(-rows // self.train_batch_size)

    def _check(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0 to explore, got {self.temperature}")
        not_known = "is not known beforehand, as it depends on how many rollouts are correct"
        self._check_choice(
            "lr_scheduler_type", ENDLESS_SCHEDULES, f": the number of updates {not_known}"
        )
        if 0 < self.warmup_steps < 1:
            raise ValueError(
                f"warmup_steps must be a number of updates, got {self.warmup_steps}: a share of "
                f"them {not_known}"
            )
        super()._check()
        self.rollout_sampling()  # a ValueError says what is out of range

    def _check_lengths(self) -> None:
        self._check_min_tokens("max_completion_length", "eval_max_completion_length")

    def _derived_values(self) -> dict[str, Any]:
        # Validation and checkpoints come at the end of EI steps, which the trainer tells.
        return {
            **super()._derived_values(),
            "max_steps": self.max_updates,
            "num_train_epochs": 1.0,
            "eval_strategy": "no",
            "eval_steps": None,
            "save_strategy": "no",
            "save_steps": 500,
        }


# Preferences


@dataclass
class R1ZeroDPOConfig(EpochSettings, DPOConfig):  # type: ignore[misc]
    """All settings of DPO; see each field's help and `DPO_UNSUPPORTED_FIELDS`. A ValueError as
    `CheckedConfig`."""

    derived_fields: ClassVar = DPO_DERIVED_FIELDS
    unsupported_fields: ClassVar = DPO_UNSUPPORTED_FIELDS

    beta: float = arg(0.1, "How much a deviation from the reference weighs.")
    train_batch_size: Count = arg(64, "Pairs per optimizer update, over all processes.")
    max_length: Count | None = arg(
        1024, "Tokens of the instruction in its template and a response at most. null: any number."
    )
    learning_rate: float = arg(1e-6, "Peak learning rate.")
    optim: str = arg("rmsprop", "Optimizer of transformers; the paper's is RMSprop.")
    precompute_ref_log_probs: bool = arg(
        True,
        "Compute the reference's log-probabilities before training, so that one model is in memory "
        "while it trains. false: keep the reference in memory, on ref_device.",
    )
    precompute_ref_batch_size: Count | None = arg(
        None, "Pairs at a time of that. Unset: those of a micro-batch. Memory only."
    )
    ref_device: str | None = arg(
        None,
        "With precompute_ref_log_probs false: device of the reference model, such as cuda:1. "
        "Unset: where the policy is.",
    )
    eval_every: Count | None = arg(
        50, "Validate every N optimizer updates, and at start and end. null: never."
    )
    eval_on_start: bool = arg(True, "Validate before the first update too.")
    # Derived: None here, so that a value that is set is noticed.
    per_device_eval_batch_size: int | None = arg(None, "Derived from train_batch_size.")  # type: ignore[assignment]

    def _check(self) -> None:
        super()._check()
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta must be finite and above 0, got {self.beta}")
        if self.ref_device is not None:
            self._check_ref_device(self.ref_device)

    def _check_ref_device(self, name: str) -> None:
        if self.precompute_ref_log_probs:
            raise ValueError(
                f"ref_device is {name!r}, but there is no reference model while the policy trains: "
                "set precompute_ref_log_probs to false, or remove ref_device"
            )
        if self._launched_processes > 1:
            raise ValueError(
                f"ref_device is {name!r}, but there are {self._launched_processes} processes, each "
                "with its own device: remove ref_device, or start one process"
            )
        try:
            torch.device(name)
        except RuntimeError as error:
            message = f"ref_device must be a device such as cuda:1 or cpu, got {name!r} ({error})"
            raise ValueError(message) from error

    def check_ref_device_is_there(self) -> None:
        """Raise a ValueError if this process does not see `ref_device`.

        Not checked with the settings: a recipe may be read on another machine than it runs on.
        """
        name, visible = self.ref_device, visible_here()
        device = torch.device(name or "cpu")
        if device.type == "cuda" and (device.index or 0) >= len(visible):
            raise ValueError(
                f"ref_device is {name!r}, but {visible.in_words()}, counted from 0; show it "
                "more (CUDA_VISIBLE_DEVICES; no gpu_ids for `accelerate launch`), or name another "
                "device"
            )

    def _derived_values(self) -> dict[str, Any]:
        return {
            **super()._derived_values(),
            "per_device_eval_batch_size": self.rows_per_microbatch or DEFAULT_ROWS,
        }
