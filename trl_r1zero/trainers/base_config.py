"""What the configs of all trainers share: checks, common defaults, epochs, sampling and validation.

There is one setting per concept. What TRL or transformers derive from another setting, or word
differently, cannot also be set (`derived_fields`), and what TRL's own trainer offers and ours does
not is an error with its reason (`unsupported_fields`), never silently ignored.

Departures from the defaults of TRL and `TrainingArguments`: constant learning rate, AdamW betas
(0.9, 0.95), no gradient checkpointing, bf16 autocast only where there is an accelerator, log every
update, a NaN loss is shown and not filtered away.
"""

import copy
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import InitVar, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trl_r1zero.common.arguments import Count, arg, check_ranges, default_of
from trl_r1zero.common.naming import did_you_mean
from trl_r1zero.common.network import choose_gloo_interface

from .memory_limits import DEFAULT_GENERATION_ROWS
from .one_device import settle_use_cpu, use_one_gpu

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Arguments
else:
    # A mixin without bases: a dataclass that inherits the fields of `TrainingArguments` would put
    # their defaults back in front of those that TRL's config gives them.
    _Arguments = object


_NOT_NEGATIVE = (
    *("learning_rate", "seed", "eval_seed", "beta", "weight_decay", "adam_epsilon"),
    *("max_grad_norm", "warmup_steps", "temperature", "eval_temperature"),
)
ON_DIVERGENCE = ("stop", "skip_update", "warn")


@dataclass
class CheckedConfig(_Arguments):
    """First base of every config, before TRL's or transformers': checks, and the device. A
    ValueError if a value is not allowed, settings do not fit one another, or a field that is
    derived or unsupported is set."""

    # Field -> what to set instead; field -> why it cannot be set.
    derived_fields: ClassVar[Mapping[str, str]] = {}
    unsupported_fields: ClassVar[Mapping[str, str]] = {}
    # Fields that may be set, and are derived where they are not.
    settled_fields: ClassVar[Collection[str]] = ()

    # What a config derived: `dataclasses.replace` hands it to the new one, which derives its own.
    derived_before: InitVar[Mapping[str, Any] | None] = None

    adam_beta2: float = arg(0.95, "AdamW's second beta; 0.999 needs averages in float32.")
    bf16: bool | None = arg(  # type: ignore[assignment]
        None, "bfloat16 autocast. Unset: where there is an accelerator."
    )
    save_total_limit: int | None = arg(1, "Checkpoints to keep.")
    logging_steps: float = arg(1, "Log every N optimizer updates.")
    logging_nan_inf_filter: bool = arg(False, "true would hide a NaN loss.")
    on_divergence: str = arg(
        "stop",
        "Where a loss, gradient or weight is not finite: stop, skip_update (leave out such an "
        "update; a weight stops the run all the same), or warn and go on.",
    )

    def __post_init__(self, derived_before: Mapping[str, Any] | None) -> None:
        defaults = {f.name: default_of(f) for f in fields(self)}
        for name, value in (derived_before or {}).items():
            if getattr(self, name) == value:
                setattr(self, name, defaults[name])
        self._reject_foreign_settings(defaults)
        check_ranges(self)
        self._check_choice("on_divergence", ON_DIVERGENCE)
        self._check()
        self._check_inherited()
        settled = [name for name in self.settled_fields if getattr(self, name) == defaults[name]]
        for name, value in self._derived_values().items():
            setattr(self, name, value)
        settle_use_cpu(self)
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16
        self._init_transformers()
        use_one_gpu(self)
        if self.world_size != self._launched_processes:
            raise ValueError(
                f"WORLD_SIZE says {self._launched_processes} processes, but there are "
                f"{self.world_size}; start the run with `accelerate launch`"
            )
        derived = (*self.derived_fields, *settled)
        vars(self)["derived_before"] = {name: getattr(self, name) for name in derived}

    def _check(self) -> None:
        """Raise a ValueError for settings that do not fit one another."""

    def _check_inherited(self) -> None:
        """Raise a ValueError for a number of TRL's or transformers' that torch would refuse late,
        or take in silence."""
        for name in _NOT_NEGATIVE:
            value = getattr(self, name, None)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def _derived_values(self) -> dict[str, Any]:
        """What the fields of TRL and transformers must be for ours to hold."""
        return {}

    def _init_transformers(self) -> None:
        choose_gloo_interface(os.environ)
        super().__post_init__()

    @property
    def _launched_processes(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    def _reject_foreign_settings(self, defaults: Mapping[str, Any]) -> None:
        for name in (*self.derived_fields, *self.unsupported_fields):
            if (got := getattr(self, name)) == defaults[name]:
                continue
            if instead := self.derived_fields.get(name):
                raise ValueError(f"{name} follows from another setting; set {instead} instead")
            reason = self.unsupported_fields[name]
            raise ValueError(f"{name} is not supported ({reason}); got {got!r}, remove it")

    def _check_choice(self, name: str, choices: Collection[str], reason: str = "") -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {value!r}"
                f"{did_you_mean(value, choices)}{reason}"
            )


@dataclass
class StrictConfig(CheckedConfig):
    """What the configs of the trainers with a training step of their own share."""

    lr_scheduler_type: str = arg("constant", "Learning-rate schedule of transformers.")
    gradient_checkpointing: bool = arg(
        False, "Recompute activations in backward: less memory, slower."
    )
    fused_lm_head: bool | None = arg(
        None,
        "Log-probabilities through TRL's fused head, without (batch, length, vocabulary) logits. "
        "Unset: on accelerators, not on CPUs, where it is slower.",
    )
    max_tokens_per_microbatch: Count | None = arg(
        None,
        "Tokens of a micro-batch at most, padding included. Unset: on GPUs as many as fit into "
        "memory, on CPUs any number. Memory only.",
    )
    gradient_accumulation_steps: Count | None = arg(  # type: ignore[assignment]
        None,
        "A micro-batch has at most the rows of a process's share of a train batch over this, too. "
        "Unset: the tokens alone count, and where they have no limit, 2 rows. Memory only.",
    )
    pack_rows: bool | None = arg(
        None,
        "Concatenate the rows of a micro-batch instead of padding them. Unset: with flash "
        "attention, which works on each row alone; others compute and mask what is between rows.",
    )
    share_prefixes: bool = arg(
        False,
        "Compute once what rows of a micro-batch begin with alike: a group's prompt, or common "
        "instructions. For long prompts; with attn_implementation sdpa or eager.",
    )
    eval_every: Count | None = arg(5, "Validate every N steps. null: never.")
    profile: bool = arg(False, "Print where the time of each optimizer update went.")
    save_total_limit: int | None = arg(1, "Checkpoints to keep (the best model is kept besides).")
    save_best: bool = arg(True, "Keep the model of best validation accuracy in <output_dir>/best.")
    dataloader_pin_memory: bool = arg(False, "A batch of this loader is a list of rows.")
    logging_nan_inf_filter: bool = arg(False, "Not supported: it would hide a NaN loss.")
    pad_to_multiple_of: int | str | None = arg(None, "Not supported.")
    # Derived: None here, so that a value that is set is noticed.
    per_device_train_batch_size: int | None = arg(None, "Derived from train_batch_size.")  # type: ignore[assignment]
    max_steps: int | None = arg(None, "Derived from the length of the run.")  # type: ignore[assignment]
    eval_strategy: str | None = arg(None, "Derived from eval_every.")  # type: ignore[assignment]
    save_strategy: str | None = arg(None, "Derived from save_every.")  # type: ignore[assignment]
    save_steps: float | None = arg(None, "Derived from save_every.")  # type: ignore[assignment]

    def _init_transformers(self) -> None:
        """transformers needs numbers, also where memory decides."""
        given = self.gradient_accumulation_steps, self.per_device_eval_batch_size
        self.gradient_accumulation_steps = given[0] or 1
        self.per_device_eval_batch_size = given[1] or DEFAULT_GENERATION_ROWS
        super()._init_transformers()
        self.gradient_accumulation_steps, self.per_device_eval_batch_size = given

    def for_transformers(self) -> Self:
        """A copy for the loop of transformers, to which an update is one step."""
        args = copy.copy(self)
        args.gradient_accumulation_steps = 1
        args.per_device_eval_batch_size = self.per_device_eval_batch_size or DEFAULT_GENERATION_ROWS
        return args

    @property
    def train_batch_share(self) -> int:
        """Rows of a full train batch that one process trains on."""
        return self.train_batch_size // self._launched_processes

    @property
    def rows_per_microbatch(self) -> int | None:
        """Rows of a micro-batch at most; None where only tokens count."""
        steps = self.gradient_accumulation_steps
        return None if steps is None else self.train_batch_share // steps

    def _evaluation_values(self, updates_per_step: int = 1) -> dict[str, Any]:
        """The fields of transformers for a validation every `eval_every` steps."""
        every = self.eval_every
        return {
            "do_eval": every is not None,
            "eval_strategy": "no" if every is None else "steps",
            "eval_steps": None if every is None else every * updates_per_step,
            "metric_for_best_model": None if every is None else "eval_accuracy",
            "greater_is_better": None if every is None else True,
        }

    def _saving_values(self, every: int | None, updates_per_step: int = 1) -> dict[str, Any]:
        """The fields of transformers for a checkpoint every N steps."""
        if every is None:
            return {"save_strategy": "no", "save_steps": 500}
        return {"save_strategy": "steps", "save_steps": every * updates_per_step}

    def _require_divisible(self, name: str, divisor_name: str) -> None:
        value, divisor = getattr(self, name), getattr(self, divisor_name)
        if value % divisor != 0:
            raise ValueError(
                f"{name} ({value}) must be divisible by {divisor_name} ({divisor}); "
                f"{max(value // divisor, 1) * divisor} is"
            )

    def _check_train_batch(self) -> None:
        """Every process takes equally many rows, and cuts them into equal micro-batches."""
        processes, rows = self._launched_processes, self.train_batch_size
        share, rest = divmod(rows, processes)
        if rest or not share:
            raise ValueError(
                f"{processes} processes cannot share train_batch_size ({rows}) rows evenly; start "
                "another number of processes, or change the train batch, which changes the "
                f"algorithm (train_batch_size {max(share, 1) * processes} can be shared)"
            )
        steps = self.gradient_accumulation_steps
        if steps is not None and share % steps:
            of_processes = f" x {processes} processes" if processes > 1 else ""
            # Memory only; another train batch would be another algorithm.
            fits = max(n for n in range(1, steps + 1) if share % n == 0)
            raise ValueError(
                f"train_batch_size ({rows}) must be divisible by gradient_accumulation_steps"
                f"{of_processes} ({steps * processes}); set gradient_accumulation_steps to {fits}, "
                "or leave it unset"
            )
