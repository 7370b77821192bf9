"""What the configs of all trainers share: strictness, common defaults, sampling and validation.

One knob per concept. What TRL or transformers derive from another knob, or word differently, cannot
also be set (`derived_fields`), and what TRL's own trainer offers and ours does not is an error with
its reason (`unsupported_fields`), never silently ignored.

Departures from the defaults of TRL and `TrainingArguments`: constant learning rate, AdamW betas
(0.9, 0.95), no gradient checkpointing, bf16 autocast only where there is an accelerator, log every
update, a NaN loss is shown and not filtered away.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trl_r1zero.generation.vllm_server import VLLMServerConfig

from .memory_limits import DEFAULT_GENERATION_ROWS
from .one_device import settle_use_cpu, use_one_gpu

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Arguments
else:
    # A mixin without bases: a dataclass that inherits the fields of `TrainingArguments` would put
    # their defaults back in front of those that TRL's config gives them.
    _Arguments = object

# What transformers wants as numbers, and is unset here where memory decides.
_NUMBERS_TO_TRANSFORMERS = {
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": DEFAULT_GENERATION_ROWS,
}
# What the instances so far have derived: `dataclasses.replace` hands all of it back in at once.
_DERIVATIONS: set[tuple[Any, ...]] = set()


def knob(default: Any, help: str) -> Any:
    """A field of a config with its help."""
    return field(default=default, metadata={"help": help})


@dataclass
class StrictConfig(_Arguments):
    """First base of every config, before TRL's.

    Raises:
        ValueError: Settings do not fit one another, or a field that is derived or unsupported is
            set.
    """

    # Field -> what to set instead; field -> why it cannot be set.
    derived_fields: ClassVar[Mapping[str, str]] = {}
    unsupported_fields: ClassVar[Mapping[str, str]] = {}

    lr_scheduler_type: str = knob("constant", "Learning-rate schedule of transformers.")
    adam_beta2: float = knob(0.95, "AdamW's second beta.")
    gradient_checkpointing: bool = knob(
        False, "Recompute activations in backward: less memory, slower."
    )
    fused_lm_head: bool | None = knob(
        None,
        "Log-probabilities through TRL's fused head, without (batch, length, vocabulary) logits. "
        "Unset: on accelerators, not on CPUs, where it is slower.",
    )
    max_tokens_per_microbatch: int | None = knob(
        None,
        "Tokens of a micro-batch at most, padding included. Unset: on GPUs as many as fit into "
        "memory, on CPUs any number. Memory only.",
    )
    gradient_accumulation_steps: int | None = knob(  # type: ignore[assignment]
        None,
        "A micro-batch has at most the rows of a process's share of a train batch over this, too. "
        "Unset: the tokens alone count, and where they have no limit, 2 rows. Memory only.",
    )
    pack_rows: bool | None = knob(
        None,
        "Put the rows of a micro-batch one behind the other, without padding. Unset: with flash "
        "attention, which then works on each row alone; others compute and mask what lies between "
        "rows.",
    )
    eval_every: int | None = knob(5, "Validate every so many steps. null: never.")
    profile: bool = knob(False, "Print where the time of each optimizer update went.")
    save_total_limit: int | None = knob(1, "Checkpoints to keep (the best model is kept besides).")
    save_best: bool = knob(True, "Keep the model of best validation accuracy in <output_dir>/best.")
    dataloader_pin_memory: bool = knob(False, "A batch of this loader is a list of rows.")
    logging_steps: float = knob(1, "Log every so many optimizer updates.")
    logging_nan_inf_filter: bool = knob(False, "Not supported: it would hide a NaN loss.")
    pad_to_multiple_of: int | str | None = knob(None, "Not supported.")
    # Derived: unset here, so that a value that somebody sets is seen.
    per_device_train_batch_size: int | None = knob(None, "Derived from train_batch_size.")  # type: ignore[assignment]
    max_steps: int | None = knob(None, "Derived from the length of the run.")  # type: ignore[assignment]
    eval_strategy: str | None = knob(None, "Derived from eval_every.")  # type: ignore[assignment]
    save_strategy: str | None = knob(None, "Derived from save_every.")  # type: ignore[assignment]
    save_steps: float | None = knob(None, "Derived from save_every.")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._forget_derived_values()
        self._reject_foreign_settings()
        self._require_at_least(1, "max_tokens_per_microbatch", "gradient_accumulation_steps")
        self._check()
        for name, value in self._derived_values().items():
            setattr(self, name, value)
        settle_use_cpu(self)
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu
        unset = [name for name in _NUMBERS_TO_TRANSFORMERS if getattr(self, name) is None]
        for name in unset:
            setattr(self, name, _NUMBERS_TO_TRANSFORMERS[name])
        super().__post_init__()
        for name in unset:
            setattr(self, name, None)
        use_one_gpu(self)
        if self.world_size != self._launched_processes:
            raise ValueError(
                f"WORLD_SIZE says {self._launched_processes} processes, but there are "
                f"{self.world_size}; start the run with `accelerate launch`"
            )
        _DERIVATIONS.add(self._derived_state())

    def _check(self) -> None:
        """Raise a ValueError for settings that cannot work."""

    def _derived_values(self) -> dict[str, Any]:
        """What the fields of TRL and transformers must be for ours to hold."""
        return {}

    @property
    def train_batch_share(self) -> int:
        """Rows of a full train batch that one process trains on."""
        return self.train_batch_size // self._launched_processes

    @property
    def rows_per_microbatch(self) -> int | None:
        """Rows of a micro-batch at most; None where only tokens count."""
        steps = self.gradient_accumulation_steps
        return None if steps is None else self.train_batch_share // steps

    def for_transformers(self) -> Self:
        """A copy for the loop of transformers, to which an update is one step."""
        args = copy.copy(self)
        args.gradient_accumulation_steps = 1
        if args.per_device_eval_batch_size is None:
            name = "per_device_eval_batch_size"
            setattr(args, name, _NUMBERS_TO_TRANSFORMERS[name])
        return args

    def evaluation_values(self, updates_per_step: int) -> dict[str, Any]:
        """The fields of transformers for a validation every `eval_every` steps."""
        never = self.eval_every is None
        return {
            "do_eval": not never,
            "eval_strategy": "no" if never else "steps",
            "eval_steps": None if self.eval_every is None else self.eval_every * updates_per_step,
            "metric_for_best_model": None if never else "eval_accuracy",
            "greater_is_better": None if never else True,
        }

    @property
    def _launched_processes(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    def _derived_state(self) -> tuple[Any, ...]:
        return type(self), *(getattr(self, name) for name in self.derived_fields)

    def _forget_derived_values(self) -> None:
        """Unset the derived fields if all of them are what another instance derived."""
        if self._derived_state() in _DERIVATIONS:
            for f in fields(self):
                if f.name in self.derived_fields:
                    setattr(self, f.name, default_of(f))

    def _reject_foreign_settings(self) -> None:
        defaults = {f.name: default_of(f) for f in fields(self)}
        for name, instead in self.derived_fields.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} follows from another setting; set {instead} instead")
        for name, reason in self.unsupported_fields.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is not supported ({reason}); got {getattr(self, name)!r}, remove it"
                )

    def _require_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def _require_divisible(self, name: str, divisor: int, divisor_name: str) -> None:
        value = getattr(self, name)
        if value % divisor != 0:
            raise ValueError(
                f"{name} ({value}) must be divisible by {divisor_name} ({divisor}); "
                f"{max(value // divisor, 1) * divisor} is"
            )

    def _check_train_batch(self, train_batch_size: int) -> None:
        """Every process takes equally many rows, and cuts them into equal micro-batches."""
        processes = self._launched_processes
        share, rest = divmod(train_batch_size, processes)
        if rest or not share:
            nearest = max(share, 1) * processes
            raise ValueError(
                f"{processes} processes cannot share train_batch_size ({train_batch_size}) rows "
                "evenly; start another number of processes, or change the train batch, which "
                f"changes the algorithm (train_batch_size {nearest} can be shared)"
            )
        steps = self.gradient_accumulation_steps
        if steps is None or share % steps == 0:
            return
        of_processes = f" x {processes} processes" if processes > 1 else ""
        # Memory only; another train batch would be another algorithm.
        fits = max(n for n in range(1, steps + 1) if share % n == 0)
        raise ValueError(
            f"train_batch_size ({train_batch_size}) must be divisible by "
            f"gradient_accumulation_steps{of_processes} ({steps * processes}); set "
            f"gradient_accumulation_steps to {fits}, or leave it unset"
        )


@dataclass
class SamplingSettings:
    """How a trainer samples, and how it validates: through transformers or a vLLM server."""

    min_tokens: int = knob(4, "New tokens before an end-of-sequence token or stop string counts.")
    num_eval_examples: int | None = knob(None, "The first so many validation problems. Unset: all.")
    eval_temperature: float = knob(1.0, "Validation: temperature (0 is greedy).")
    eval_top_p: float = knob(1.0, "Validation: top-p.")
    eval_max_completion_length: int | None = knob(
        None, "Validation: new tokens at most. Unset: max_completion_length."
    )
    eval_seed: int = knob(0, "Validation: seed of the sampling, the same at every validation.")
    eval_on_start: bool = knob(True, "Validate before the first update too.")
    per_device_eval_batch_size: int | None = knob(
        None,
        "Completions that a process generates at a time, rollouts and validation alike "
        f"(transformers backend). Unset: {DEFAULT_GENERATION_ROWS}, on GPUs as many as fit into "
        "memory. Memory only.",
    )
    completion_entropies: bool = knob(
        True,
        "With use_vllm: run the policy over validation's completions (and expert iteration's "
        "rollouts) for their entropies, which vLLM does not give.",
    )
    use_vllm: bool = knob(False, "Sample from a vLLM server, not from transformers.")
    vllm_server: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "With use_vllm: start a server for this run, with these settings ({} for all "
            "defaults; see `trl-r1zero serve --help`), and start it again should it die. Unset: "
            "connect to vllm_server_base_url, or vllm_server_host and vllm_server_port."
        },
    )
    vllm_server_base_url: str | None = knob(
        None, "Address of a server that runs already, such as http://127.0.0.1:8000."
    )
    vllm_server_host: str = knob("127.0.0.1", "Host of a server that runs already.")
    vllm_server_port: int = knob(8000, "Port of a server that runs already.")
    vllm_server_timeout: float = knob(
        240.0, "Seconds to wait for a server that runs already to come up."
    )
    vllm_group_port: int | None = knob(
        None, "Port on which the trainer meets the server's workers. Unset: a free one."
    )
    vllm_request_timeout: float = knob(
        600.0, "Seconds that a completion, or one step of a weight update, may take at most."
    )
    vllm_check_syncs: int = knob(
        3,
        "After so many first synchronisations, compare the server's log-probabilities of a probe "
        "with the trainer's, and stop if they differ.",
    )
    ds3_gather_for_generation: bool = knob(
        True, "DeepSpeed ZeRO-3 with transformers sampling: gather the weights first. Faster."
    )

    def check_sampling(self) -> None:
        """Raise a ValueError for settings of the server or of validation that cannot work."""
        for name in (
            "eval_every",
            "num_eval_examples",
            "eval_max_completion_length",
            "per_device_eval_batch_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.vllm_server is not None:
            if not self.use_vllm:
                raise ValueError(
                    "vllm_server has settings, but use_vllm is false; set use_vllm to true, or "
                    "vllm_server to null (--vllm_server null)"
                )
            # Unknown and wrong settings are to be errors now, not after the model is loaded.
            VLLMServerConfig.from_settings(self.vllm_server)
        if self.vllm_check_syncs < 0:
            raise ValueError(f"vllm_check_syncs must be at least 0, got {self.vllm_check_syncs}")
        if not self.vllm_request_timeout > 0:
            raise ValueError(
                f"vllm_request_timeout must be above 0 seconds, got {self.vllm_request_timeout}"
            )

    def check_min_tokens(self, *limits: str) -> None:
        """Raise a ValueError if `min_tokens` is not between 0 and each of these limits."""
        for name in limits:
            limit = getattr(self, name)
            if not 0 <= self.min_tokens <= (limit or 0):
                raise ValueError(
                    f"min_tokens must be between 0 and {name} ({limit}), got {self.min_tokens}"
                )


def default_of(f: dataclasses.Field) -> Any:
    """The default of a dataclass's field."""
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default
