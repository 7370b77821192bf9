"""Configuration of `R1ZeroGRPOTrainer`: the handout's knobs and defaults on TRL's `GRPOConfig`.

One knob per concept. What TRL derives from another knob, or words differently, cannot also be set
(`DERIVED_FIELDS`), and what TRL's own loss offers and this trainer does not is an error with its
reason (`UNSUPPORTED_FIELDS`), never silently ignored.

Departures from the defaults of `GRPOConfig` and `TrainingArguments`: constant learning rate,
AdamW betas (0.9, 0.95), 1,024 new tokens, no gradient checkpointing, bf16 autocast only where there
is an accelerator, log every update, a NaN loss is shown and not filtered away.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl import GRPOConfig

from trl_r1zero.functional import AGGREGATIONS, LOSS_TYPES, SAMPLER_CORRECTIONS
from trl_r1zero.generation.vllm_server import VLLMServerConfig

from .trl_fields import DERIVED_FIELDS, TRL_LOSS_TYPES, UNSUPPORTED_FIELDS

# What the instances so far have derived: `dataclasses.replace` hands all of it back in at once.
_DERIVATIONS: set[tuple[Any, ...]] = set()


def _knob(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class R1ZeroGRPOConfig(GRPOConfig):
    """All settings of a GRPO run; see each field's help and `UNSUPPORTED_FIELDS`.

    A *GRPO step* samples one rollout batch and makes
    `epochs_per_rollout_batch * rollout_batch_size / train_batch_size` optimizer updates on it.

    Raises:
        ValueError: The batch sizes do not fit one another, a name is unknown, or a field of TRL's
            that is derived or unsupported is set.
    """

    n_grpo_steps: int = _knob(200, "GRPO steps: rollout batches that are sampled and trained on.")
    rollout_batch_size: int = _knob(256, "Completions sampled per GRPO step, over all processes.")
    group_size: int = _knob(8, "Completions per prompt, whose rewards are compared (G).")
    train_batch_size: int = _knob(256, "Completions per optimizer update, over all processes.")
    epochs_per_rollout_batch: int = _knob(1, "Passes over each rollout batch.")
    gradient_accumulation_steps: int = _knob(
        128, "Micro-batches that a process cuts its share of a train batch into. Memory only."
    )
    loss_type: str = _knob(
        "reinforce_with_baseline", f"Which policy gradient: {', '.join(LOSS_TYPES)}."
    )
    use_std_normalization: bool | None = _knob(
        None,
        "Divide advantages by the group's standard deviation. Unset: yes where the loss type has a "
        "baseline.",
    )
    advantage_eps: float = _knob(1e-6, "Added to the group's standard deviation.")
    cliprange: float = _knob(
        0.2, "grpo_clip: the ratio is clipped to [1 - cliprange, 1 + cliprange]."
    )
    cliprange_high: float | None = _knob(
        None, "grpo_clip: another upper bound, 1 + cliprange_high (DAPO's clip-higher)."
    )
    aggregation: str = _knob(
        "masked_mean", f"From per-token losses to one number: {', '.join(AGGREGATIONS)}."
    )
    normalize_constant: float | None = _knob(
        None, "masked_normalize: the divisor of each sequence's sum. Unset: max_completion_length."
    )
    max_completion_length: int | None = _knob(1024, "New tokens per completion at most.")
    min_tokens: int = _knob(4, "New tokens before an end-of-sequence token or stop string counts.")

    eval_every: int | None = _knob(
        5, "Validate every so many GRPO steps, and at start and end. null: never."
    )
    num_eval_examples: int | None = _knob(
        None, "The first so many validation problems. Unset: all."
    )
    eval_temperature: float = _knob(1.0, "Validation: temperature (0 is greedy).")
    eval_top_p: float = _knob(1.0, "Validation: top-p.")
    eval_max_completion_length: int | None = _knob(
        None, "Validation: new tokens at most. Unset: max_completion_length."
    )
    eval_seed: int = _knob(0, "Validation: seed of the sampling, the same at every validation.")
    eval_on_start: bool = _knob(True, "Validate before the first update too.")
    per_device_eval_batch_size: int = _knob(
        128, "Validation: completions generated at a time by a process (transformers backend)."
    )

    save_every: int | None = _knob(
        50, "Checkpoint every so many GRPO steps and at the end. null: never."
    )
    save_total_limit: int | None = _knob(1, "Checkpoints to keep (the best model is kept besides).")
    save_best: bool = _knob(
        True, "Keep the model of best validation accuracy in <output_dir>/best."
    )
    log_rollouts_every: int | None = _knob(
        10, "Write a table of rollouts every so many GRPO steps, and of the first. null: never."
    )
    num_rollouts_to_log: int = _knob(64, "Rollouts in such a table.")
    fused_lm_head: bool | None = _knob(
        None,
        "Log-probabilities through TRL's fused head, without (batch, length, vocabulary) logits. "
        "Unset: on accelerators, not on CPUs, where it is slower.",
    )

    # TRL's and transformers' fields with other defaults.
    learning_rate: float = _knob(1e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = _knob("constant", "Learning-rate schedule of transformers.")
    adam_beta2: float = _knob(0.95, "AdamW's second beta.")
    gradient_checkpointing: bool = _knob(
        False, "Recompute activations in backward: less memory, slower."
    )
    dataloader_pin_memory: bool = _knob(False, "A batch of this loader is a list of strings.")
    logging_steps: float = _knob(1, "Log every so many optimizer updates.")
    logging_nan_inf_filter: bool = _knob(False, "Not supported: it would hide a NaN loss.")
    vllm_mode: str = _knob(
        "server", "With use_vllm: server (one device generates, the others train)."
    )
    vllm_importance_sampling_correction: bool = _knob(
        False,
        "With use_vllm: multiply each token's loss by its probability under the trainer's model "
        "over that under vLLM's, bounded.",
    )
    vllm_importance_sampling_mode: str = _knob(
        "sequence_mask",
        f"With the correction, a ratio per token or per response, clamped to the bounds or 0 "
        f"outside of them: {', '.join(SAMPLER_CORRECTIONS)}.",
    )
    vllm_importance_sampling_clip_max: float | None = _knob(
        3.0, "With the correction, the ratio's upper bound. null: none."
    )
    vllm_importance_sampling_clip_min: float | None = _knob(
        None, "With the correction, the ratio's lower bound. Unset: none."
    )
    vllm_server: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "With use_vllm: start a server for this run, with these settings ({} for all "
            "defaults; see `trl-r1zero serve --help`), and start it again should it die. Unset: "
            "connect to vllm_server_base_url, or vllm_server_host and vllm_server_port."
        },
    )
    vllm_server_host: str = _knob("127.0.0.1", "Host of a server that runs already.")
    vllm_group_port: int | None = _knob(  # type: ignore[assignment]
        None, "Port on which the trainer meets the server's workers. Unset: a free one."
    )
    vllm_request_timeout: float = _knob(
        600.0, "Seconds that a completion, or one step of a weight update, may take at most."
    )
    vllm_check_syncs: int = _knob(
        3,
        "After so many first synchronisations, compare the server's log-probabilities of a probe "
        "with the trainer's, and stop if they differ.",
    )
    pad_to_multiple_of: int | str | None = _knob(None, "Not supported.")
    # Derived: unset here, so that a value that somebody sets is seen.
    num_generations: int | None = _knob(None, "Derived from group_size.")
    per_device_train_batch_size: int | None = _knob(None, "Derived from train_batch_size.")  # type: ignore[assignment]
    num_iterations: int | None = _knob(None, "Derived from epochs_per_rollout_batch.")  # type: ignore[assignment]
    max_steps: int | None = _knob(None, "Derived from n_grpo_steps.")  # type: ignore[assignment]
    num_train_epochs: float | None = _knob(None, "Derived from n_grpo_steps.")  # type: ignore[assignment]
    scale_rewards: str | None = _knob(None, "Derived from use_std_normalization.")  # type: ignore[assignment]
    epsilon: float | None = _knob(None, "Derived from cliprange.")  # type: ignore[assignment]
    eval_strategy: str | None = _knob(None, "Derived from eval_every.")  # type: ignore[assignment]
    save_strategy: str | None = _knob(None, "Derived from save_every.")  # type: ignore[assignment]
    save_steps: float | None = _knob(None, "Derived from save_every.")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._forget_derived_values()
        self._reject_foreign_settings()
        self._check_names()
        self._check_sampler_correction()
        self._check_server()
        self._check_batch_sizes()
        self._derive()
        super().__post_init__()
        if self.world_size != self._launched_processes:
            raise ValueError(
                f"WORLD_SIZE says {self._launched_processes} processes, but there are "
                f"{self.world_size}; start the run with `accelerate launch`"
            )
        _DERIVATIONS.add(self._derived_state())

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one pass over a rollout batch."""
        return self.rollout_batch_size // self.train_batch_size

    @property
    def updates_per_grpo_step(self) -> int:
        """Optimizer updates per rollout batch; more than one is off-policy training."""
        return self.epochs_per_rollout_batch * self.updates_per_epoch

    @property
    def train_batch_share(self) -> int:
        """Rows of a train batch that one process trains on."""
        return self.train_batch_size // self._launched_processes

    @property
    def advantage(self) -> str:
        """The key of `ADVANTAGES` that loss type and std normalisation stand for."""
        loss_type = LOSS_TYPES[self.loss_type]
        use_std = self.use_std_normalization
        return loss_type.advantage_with(
            loss_type.advantage != "raw" if use_std is None else use_std
        )

    @property
    def clip_bounds(self) -> float | tuple[float, float]:
        """`cliprange` as the functional losses take it."""
        return (
            self.cliprange if self.cliprange_high is None else (self.cliprange, self.cliprange_high)
        )

    @property
    def sequence_divisor(self) -> float | None:
        """What masked_normalize divides each sequence's sum by; None for other aggregations."""
        if self.aggregation != "masked_normalize":
            return None
        if self.normalize_constant is not None:
            return self.normalize_constant
        return float(self.max_completion_length or 1)

    def _derived_state(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in DERIVED_FIELDS)

    def _forget_derived_values(self) -> None:
        """Unset the derived fields if all of them are what another instance derived."""
        if self._derived_state() in _DERIVATIONS:
            for f in fields(self):
                if f.name in DERIVED_FIELDS:
                    setattr(self, f.name, _default(f))

    def _reject_foreign_settings(self) -> None:
        defaults = {f.name: _default(f) for f in fields(self)}
        for name, instead in DERIVED_FIELDS.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} follows from another setting; set {instead} instead")
        for name, reason in UNSUPPORTED_FIELDS.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is not supported ({reason}); got {getattr(self, name)!r}, remove it"
                )

    def _check_names(self) -> None:
        if self.loss_type in TRL_LOSS_TYPES:
            raise ValueError(
                f"loss_type {self.loss_type!r} is TRL's name of a fused combination; here it is "
                f"{TRL_LOSS_TYPES[self.loss_type]}"
            )
        for name, allowed in (
            ("loss_type", LOSS_TYPES),
            ("aggregation", AGGREGATIONS),
            ("vllm_importance_sampling_mode", SAMPLER_CORRECTIONS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                nearest = difflib.get_close_matches(str(value), allowed, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")
        _ = self.advantage  # a ValueError says so where there is no baseline to normalise
        if self.normalize_constant is not None and self.aggregation != "masked_normalize":
            raise ValueError(
                f"normalize_constant is used by aggregation masked_normalize only, and aggregation "
                f"is {self.aggregation}; remove one"
            )
        for name in (
            "cliprange",
            "cliprange_high",
            "advantage_eps",
            "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_clip_min",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.normalize_constant is not None and not self.normalize_constant > 0:
            raise ValueError(f"normalize_constant must be above 0, got {self.normalize_constant}")
        if self.cliprange_high is not None and self.loss_type != "grpo_clip":
            raise ValueError(
                f"cliprange_high is used by grpo_clip only, and loss_type is {self.loss_type}"
            )
        if self.use_vllm and self.vllm_mode != "server":
            raise ValueError(f"vllm_mode must be 'server', got {self.vllm_mode!r}")

    def _check_sampler_correction(self) -> None:
        correction = "vllm_importance_sampling_correction"
        if self.vllm_importance_sampling_correction:
            if not self.use_vllm:
                raise ValueError(
                    f"{correction} needs use_vllm: without it the trainer's own model samples, and "
                    f"there is nothing to correct; remove it or set use_vllm to true"
                )
            return
        defaults = {f.name: _default(f) for f in fields(self)}
        for part in ("mode", "clip_max", "clip_min"):
            name = f"vllm_importance_sampling_{part}"
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is used by {correction} only, and that is off; got "
                    f"{getattr(self, name)!r}, remove it or set {correction} to true"
                )

    def _check_server(self) -> None:
        if self.vllm_server is not None:
            if not self.use_vllm:
                raise ValueError("vllm_server has settings, but use_vllm is false; set it to true")
            # Unknown and wrong settings are to be errors now, not after the model is loaded.
            VLLMServerConfig.from_settings(self.vllm_server)
        if self.vllm_check_syncs < 0:
            raise ValueError(f"vllm_check_syncs must be at least 0, got {self.vllm_check_syncs}")
        if not self.vllm_request_timeout > 0:
            raise ValueError(
                f"vllm_request_timeout must be above 0 seconds, got {self.vllm_request_timeout}"
            )

    def _check_batch_sizes(self) -> None:
        for name in (
            "n_grpo_steps",
            "rollout_batch_size",
            "group_size",
            "train_batch_size",
            "epochs_per_rollout_batch",
            "gradient_accumulation_steps",
            "eval_every",
            "num_eval_examples",
            "save_every",
            "log_rollouts_every",
            "num_rollouts_to_log",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        processes = self._launched_processes
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, got {self.group_size}: a baseline needs a group"
            )
        _require_divisible(self, "rollout_batch_size", self.group_size, "group_size")
        _require_divisible(self, "rollout_batch_size", self.train_batch_size, "train_batch_size")
        if self.train_batch_size < self.group_size:
            raise ValueError(
                f"train_batch_size ({self.train_batch_size}) must be at least group_size "
                f"({self.group_size})"
            )
        _require_divisible(
            self,
            "train_batch_size",
            self.gradient_accumulation_steps,
            "gradient_accumulation_steps",
        )
        if processes > 1:
            _require_divisible(
                self,
                "train_batch_size",
                self.gradient_accumulation_steps * processes,
                f"gradient_accumulation_steps x {processes} processes",
            )
        if not 0 <= self.min_tokens <= (self.max_completion_length or 0):
            raise ValueError(
                f"min_tokens must be between 0 and max_completion_length "
                f"({self.max_completion_length}), got {self.min_tokens}"
            )

    @property
    def _launched_processes(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    def _derived_values(self) -> dict[str, Any]:
        """What the fields of TRL and transformers must be for ours to hold."""
        updates = self.updates_per_grpo_step
        return {
            "num_generations": self.group_size,
            "num_generations_eval": 1,
            "per_device_train_batch_size": self.train_batch_share,
            "generation_batch_size": self.rollout_batch_size,
            "num_iterations": self.epochs_per_rollout_batch,
            "max_steps": self.n_grpo_steps * updates,
            "num_train_epochs": 1.0,
            "scale_rewards": "group" if self.advantage == "group_mean_std" else "none",
            "epsilon": self.cliprange,
            "epsilon_high": self.cliprange_high,
            "do_eval": self.eval_every is not None,
            "eval_strategy": "no" if self.eval_every is None else "steps",
            "eval_steps": None if self.eval_every is None else self.eval_every * updates,
            "metric_for_best_model": None if self.eval_every is None else "eval_accuracy",
            "greater_is_better": None if self.eval_every is None else True,
            "save_strategy": "no" if self.save_every is None else "steps",
            "save_steps": 500 if self.save_every is None else self.save_every * updates,
        }

    def _derive(self) -> None:
        for name, value in self._derived_values().items():
            setattr(self, name, value)
        # Without this, processes that torchrun starts on a machine without accelerator do not find
        # one another, and each one trains alone.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu


def _default(f: dataclasses.Field) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def _require_divisible(
    config: R1ZeroGRPOConfig, name: str, divisor: int, divisor_name: str
) -> None:
    value = getattr(config, name)
    if value % divisor != 0:
        raise ValueError(
            f"{name} ({value}) must be divisible by {divisor_name} ({divisor}); "
            f"{max(value // divisor, 1) * divisor} is"
        )
