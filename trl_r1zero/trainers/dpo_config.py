"""Configuration of `R1ZeroDPOTrainer`, on TRL's `DPOConfig`."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from trl import DPOConfig

from trl_r1zero.common.arguments import Count, arg
from trl_r1zero.devices.facts import visible_here

from .base_config import EpochSettings
from .memory_limits import DEFAULT_ROWS
from .trl_fields import DPO_DERIVED_FIELDS, DPO_UNSUPPORTED_FIELDS


@dataclass
class R1ZeroDPOConfig(EpochSettings, DPOConfig):  # type: ignore[misc]
    """All settings of DPO; see each field's help and `DPO_UNSUPPORTED_FIELDS`.

    Raises:
        ValueError: As `CheckedConfig`.
    """

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
