"""Configurations of `R1ZeroSFTTrainer` and `ExpertIterationTrainer`, on TRL's `SFTConfig`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from trl import SFTConfig

from trl_r1zero.generation import SamplingConfig

from .base_config import SamplingSettings, knob
from .epochs import EpochSettings
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
        ValueError: The batch sizes do not fit one another, a name is unknown, or a field of TRL's
            that is derived or unsupported is set.
    """

    derived_fields: ClassVar = SFT_DERIVED_FIELDS
    unsupported_fields: ClassVar = SFT_UNSUPPORTED_FIELDS

    normalize_constant: float = knob(
        1.0, "Divisor of each response's sum of token losses (the loss is then averaged over rows)."
    )
    append_eos: bool = knob(
        False, "End each response with the end-of-sequence token (not needed after </answer>)."
    )
    learning_rate: float = knob(2e-5, "Peak learning rate of AdamW.")
    eval_every: int | None = knob(
        16, "Validate every so many optimizer updates, and at start and end. null: never."
    )
    eval_max_completion_length: int | None = knob(1024, "Validation: new tokens at most.")

    def validation_sampling(self, stop: tuple[str, ...] = ()) -> SamplingConfig:
        """How validation samples, with the prompt's stop strings."""
        return SamplingConfig(
            temperature=self.eval_temperature,
            top_p=self.eval_top_p,
            max_tokens=self._validation_length,
            min_tokens=self.min_tokens,
            stop=stop,
        )

    @property
    def _validation_length(self) -> int:
        return self.eval_max_completion_length or 0

    def _check(self) -> None:
        self.check_sampling()
        self.check_rows()
        if not self.normalize_constant > 0:
            raise ValueError(f"normalize_constant must be above 0, got {self.normalize_constant}")
        self._check_run()
        self.validation_sampling()  # a ValueError says what is out of range

    def _check_run(self) -> None:
        self.check_epochs()
        self.check_min_tokens("eval_max_completion_length")

    def _derived_values(self) -> dict[str, Any]:
        return {**super()._derived_values(), **self.evaluation_values(1)}


@dataclass
class ExpertIterationConfig(R1ZeroSFTConfig):
    """All settings of expert iteration.

    An *EI step* samples `group_size` completions of each of `ei_batch_size` questions with the
    current policy, keeps the correct ones, and trains `sft_epochs_per_step` epochs on them.

    Raises:
        ValueError: As `R1ZeroSFTConfig`.
    """

    derived_fields: ClassVar = EI_DERIVED_FIELDS
    unsupported_fields: ClassVar = EI_UNSUPPORTED_FIELDS

    n_ei_steps: int = knob(5, "EI steps: sample, keep what is correct, train on it.")
    ei_batch_size: int = knob(512, "Questions sampled per EI step.")
    group_size: int = knob(8, "Completions per question (G).")
    sft_epochs_per_step: int = knob(1, "Passes over the kept completions of each EI step.")
    max_per_question: int | None = knob(
        None, "Keep at most so many completions of a question, the first ones. Unset: all."
    )
    drop_duplicates: bool = knob(
        False, "Keep only the first of equal completions of a question in an EI step."
    )
    temperature: float = knob(1.0, "Rollouts: temperature.")
    top_p: float = knob(1.0, "Rollouts: top-p.")
    top_k: int = knob(0, "Rollouts: top-k (0: all tokens).")
    min_p: float = knob(0.0, "Rollouts: min-p.")
    max_completion_length: int = knob(1024, "New tokens per completion at most.")
    eval_max_completion_length: int | None = knob(
        None, "Validation: new tokens at most. Unset: max_completion_length."
    )
    eval_every: int | None = knob(
        1, "Validate every so many EI steps, and at start and end. null: never."
    )
    save_every: int | None = knob(
        1, "Checkpoint every so many EI steps and at the end. null: never."
    )
    save_every_updates: int | None = knob(
        None, "Checkpoint every so many optimizer updates too, inside of EI steps. Unset: never."
    )
    num_rollouts_to_log: int = knob(64, "Rollouts in the table that each EI step writes.")
    # Derived: unset here, so that a value that somebody sets is seen.
    num_train_epochs: float | None = knob(None, "Derived from sft_epochs_per_step.")  # type: ignore[assignment]

    @property
    def max_updates(self) -> int:
        """Optimizer updates if every rollout is correct, and kept if `max_per_question` admits."""
        kept = min(self.group_size, self.max_per_question or self.group_size)
        rows = self.ei_batch_size * kept
        return self.n_ei_steps * self.sft_epochs_per_step * -(-rows // self.train_batch_size)

    @property
    def _validation_length(self) -> int:
        return self.eval_max_completion_length or self.max_completion_length

    def rollout_sampling(self, stop: tuple[str, ...] = ()) -> SamplingConfig:
        """How rollouts are sampled, with the prompt's stop strings."""
        return SamplingConfig(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_tokens=self.max_completion_length,
            min_tokens=self.min_tokens,
            stop=stop,
        )

    def _check_run(self) -> None:
        self._require_at_least(
            1,
            "n_ei_steps",
            "ei_batch_size",
            "group_size",
            "sft_epochs_per_step",
            "max_per_question",
            "save_every_updates",
            "num_rollouts_to_log",
        )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0 to explore, got {self.temperature}")
        if self.lr_scheduler_type not in ENDLESS_SCHEDULES:
            raise ValueError(
                f"lr_scheduler_type must be one of {', '.join(ENDLESS_SCHEDULES)}, got "
                f"{self.lr_scheduler_type!r}: the number of updates depends on how many rollouts "
                "are correct, and is not known beforehand"
            )
        if 0 < self.warmup_steps < 1:
            raise ValueError(
                f"warmup_steps must be a number of updates, got {self.warmup_steps}: a share of "
                "them is not known beforehand"
            )
        self.check_min_tokens("max_completion_length")
        if self.eval_max_completion_length is not None:
            self.check_min_tokens("eval_max_completion_length")
        self.rollout_sampling()  # a ValueError says what is out of range

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
