"""Configurations of `R1ZeroSFTTrainer` and `ExpertIterationTrainer`, on TRL's `SFTConfig`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from trl import SFTConfig

from trl_r1zero.common.arguments import Count, Positive, arg

from .base_config import EpochSettings
from .sampling_settings import SamplingSettings
from .trl_fields import (
    EI_DERIVED_FIELDS,
    EI_UNSUPPORTED_FIELDS,
    SFT_DERIVED_FIELDS,
    SFT_UNSUPPORTED_FIELDS,
)

# Schedules that do not ask how many updates there will be.
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup")


@dataclass
class R1ZeroSFTConfig(EpochSettings, SamplingSettings, SFTConfig):  # type: ignore[misc]
    """All settings of supervised fine-tuning; see each field's help and `SFT_UNSUPPORTED_FIELDS`.

    Raises:
        ValueError: As `CheckedConfig`.
    """

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
    current policy, keeps the correct ones, and trains `sft_epochs_per_step` epochs on them.

    Raises:
        ValueError: As `CheckedConfig`.
    """

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
