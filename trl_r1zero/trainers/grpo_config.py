"""Configuration of `R1ZeroGRPOTrainer`, on TRL's `GRPOConfig`, with the handout's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from trl import GRPOConfig

from trl_r1zero.common.arguments import AT_LEAST_0, Count, NonNegative, Positive, arg
from trl_r1zero.functional import LOSS_TYPES, SAMPLER_CORRECTIONS
from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.server_placement import check_awake

from .grpo_loss_settings import LossSettings
from .problem_settings import ProblemSettings
from .sampling_settings import SamplingSettings
from .trl_fields import DERIVED_FIELDS, UNSUPPORTED_FIELDS

# policy: the trainer's model, before the first update on a rollout batch; sampler: whatever sampled
# the completions (the same model with transformers; vLLM, which rounds otherwise, with a server).
OLD_LOG_PROBS = ("policy", "sampler")


@dataclass
class R1ZeroGRPOConfig(LossSettings, SamplingSettings, GRPOConfig):  # type: ignore[misc]
    """All settings of a GRPO run; see each field's help and `UNSUPPORTED_FIELDS`.

    A *GRPO step* samples one rollout batch and makes `epochs_per_rollout_batch * rollout_batch_size
    / train_batch_size` optimizer updates on it. A ValueError as `CheckedConfig`."""

    derived_fields: ClassVar = DERIVED_FIELDS
    unsupported_fields: ClassVar = UNSUPPORTED_FIELDS
    settled_fields: ClassVar = ("advantage", "fused_lm_head", "max_staleness")

    n_grpo_steps: Count = arg(200, "GRPO steps: rollout batches that are sampled and trained on.")
    rollout_batch_size: Count = arg(256, "Completions sampled per GRPO step, over all processes.")
    group_size: Count = arg(8, "Completions per prompt, whose rewards are compared (G).")
    train_batch_size: Count = arg(256, "Completions per optimizer update, over all processes.")
    epochs_per_rollout_batch: Count = arg(1, "Passes over each rollout batch.")
    skip_zero_advantages: bool = arg(
        True,
        "Leave rows whose advantage is 0 out of forward and backward: their gradient is 0. (Not "
        "with a KL or entropy term in the loss, which needs them.)",
    )
    old_log_probs: str = arg(
        "policy",
        f"Where several updates share a rollout batch, old log-probabilities are those of: "
        f"{', '.join(OLD_LOG_PROBS)}.",
    )
    max_staleness: Annotated[int, AT_LEAST_0] | None = arg(
        None,
        "With use_vllm: the server samples as many rollout batches ahead while this one trains, "
        "so with weights that are as many GRPO steps old at most. Needs a loss type with a ratio, "
        "and old_log_probs: sampler. Unset: 0, sample and train by turns.",
    )
    one_step_off: bool | None = arg(None, "Former name of max_staleness: true is 1, false is 0.")
    max_completion_length: int | None = arg(1024, "New tokens per completion at most.")
    problem_sampling: dict[str, Any] | None = arg(
        None,
        "Which problems are sampled: a mapping of dynamic (DAPO's dynamic sampling), filter (by "
        "the start policy's pass rate), curriculum and replay (docs/problem_sampling.md). Unset: "
        "all in shuffled order.",
    )
    overlong_buffer: Count | None = arg(
        None,
        "The reward falls over the last N tokens that a completion may have (DAPO's soft ramp). "
        "Unset: it does not.",
    )
    overlong_penalty: Positive = arg(1.0, "With overlong_buffer: how far the reward falls.")
    eval_every: Count | None = arg(
        5, "Validate every N GRPO steps, and at start and end. null: never."
    )
    save_every: Count | None = arg(50, "Checkpoint every N GRPO steps and at the end. null: never.")
    log_rollouts_every: Count | None = arg(
        10, "Write a table of rollouts every N GRPO steps, and of the first. null: never."
    )
    num_rollouts_to_log: Count = arg(64, "Rollouts in such a table.")
    # TRL's and transformers' fields with other defaults.
    learning_rate: float = arg(1e-5, "Peak learning rate of AdamW.")
    vllm_mode: str = arg(
        "server", "With use_vllm: server (one device generates, the others train)."
    )
    vllm_importance_sampling_correction: bool = arg(
        False,
        "With use_vllm: multiply each token's loss by its probability under the trainer's model "
        "over that under vLLM's, bounded.",
    )
    vllm_importance_sampling_mode: str = arg(
        "sequence_mask",
        f"With the correction, a ratio per token or per response, clamped to the bounds or 0 "
        f"outside of them: {', '.join(SAMPLER_CORRECTIONS)}.",
    )
    vllm_importance_sampling_clip_max: NonNegative | None = arg(
        3.0, "With the correction, the ratio's upper bound. null: none."
    )
    vllm_importance_sampling_clip_min: NonNegative | None = arg(
        None, "With the correction, the ratio's lower bound. Unset: none."
    )
    # Derived: None here, so that a value that is set is noticed.
    num_generations: int | None = arg(None, "Derived from group_size.")
    num_iterations: int | None = arg(None, "Derived from epochs_per_rollout_batch.")  # type: ignore[assignment]
    num_train_epochs: float | None = arg(None, "Derived from n_grpo_steps.")  # type: ignore[assignment]
    scale_rewards: str | None = arg(None, "Derived from use_std_normalization.")  # type: ignore[assignment]
    epsilon: float | None = arg(None, "Derived from cliprange.")  # type: ignore[assignment]

    def _check(self) -> None:
        self._check_loss()
        self._check_sampler_correction()
        self._check_sampler_filters()
        self._check_staleness()
        self._check_server()
        self._check_batch_sizes()
        self._check_problem_sampling()
        self._check_overlong()

    @property
    def problems(self) -> ProblemSettings | None:
        """What `problem_sampling` says."""
        given = self.problem_sampling
        return None if given is None else ProblemSettings.from_settings(given)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one pass over a rollout batch."""
        return self.rollout_batch_size // self.train_batch_size

    @property
    def updates_per_grpo_step(self) -> int:
        """Optimizer updates per rollout batch; more than one is off-policy training."""
        return self.epochs_per_rollout_batch * self.updates_per_epoch

    def validation_sampling(self, stop: Sequence[str | int] = ()) -> SamplingConfig:
        """As rollouts, `top_k` and `min_p` included, but for the settings of validation."""
        rollouts = self.rollout_sampling(stop)
        return replace(
            rollouts,
            temperature=self.eval_temperature,
            top_p=self.eval_top_p,
            max_tokens=self.eval_max_completion_length or rollouts.max_tokens,
        )

    def _check_sampler_correction(self) -> None:
        if self.use_vllm and self.vllm_mode != "server":
            raise ValueError(f"vllm_mode must be 'server', got {self.vllm_mode!r}")
        self._check_choice("old_log_probs", OLD_LOG_PROBS)
        self._check_choice("vllm_importance_sampling_mode", SAMPLER_CORRECTIONS)
        correction = "vllm_importance_sampling_correction"
        if not self.vllm_importance_sampling_correction:
            for part in ("mode", "clip_max", "clip_min"):
                name = f"vllm_importance_sampling_{part}"
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name} is used by {correction} only, and that is off; got "
                        f"{getattr(self, name)!r}, remove it or set {correction} to true"
                    )
        elif not self.use_vllm:
            raise ValueError(
                f"{correction} needs use_vllm: without it the trainer's own model samples, and "
                "there is nothing to correct; remove it or set use_vllm to true"
            )
        elif self.old_log_probs == "sampler":
            raise ValueError(
                f"{correction} has no effect with old_log_probs: sampler, whose ratio is already "
                "that of the sampler; set it to false, or old_log_probs to policy"
            )

    def _check_sampler_filters(self) -> None:
        """vLLM's log-probabilities are of what is left after the filters, the policy's of all."""
        if not self.use_vllm or self.old_log_probs != "sampler":
            return
        off: dict[str, tuple[Any, ...]] = {"top_p": (1,), "top_k": (0, -1), "min_p": (None, 0)}
        for name, values in off.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but with use_vllm and old_log_probs: "
                    "sampler the ratio compares the policy over all tokens with the sampler over "
                    f"those that {name} leaves; set {name} to {values[0]}, or old_log_probs to "
                    "policy"
                )

    def _check_staleness(self) -> None:
        if self.one_step_off is not None:
            if self.max_staleness is not None:
                raise ValueError(
                    f"one_step_off ({self.one_step_off}) and max_staleness ({self.max_staleness}) "
                    "are one setting; remove one_step_off, its former name"
                )
            self.max_staleness, self.one_step_off = int(self.one_step_off), None
        if not self.max_staleness:
            return
        if not self.use_vllm:
            raise ValueError(
                f"max_staleness: {self.max_staleness} needs use_vllm: a server samples while the "
                "trainer trains, and transformers cannot; set it to 0, or use_vllm to true"
            )
        check_awake((self.vllm_server or {}).get("sleep_level"))
        with_ratio = [name for name, kind in LOSS_TYPES.items() if kind.surrogate != "reinforce"]
        if self.loss.surrogate == "reinforce":
            raise ValueError(
                f"max_staleness: {self.max_staleness} needs a loss_type with a ratio to the older "
                f"policy: {', '.join(with_ratio)}, or such a surrogate; got {self.loss_type}"
            )
        if self.old_log_probs != "sampler":
            raise ValueError(
                f"max_staleness: {self.max_staleness} needs old_log_probs: sampler, for the policy "
                f"that sampled is gone when its rollouts are there; got {self.old_log_probs}"
            )

    def _check_problem_sampling(self) -> None:
        if (problems := self.problems) is None:
            return
        if self.max_staleness:
            raise ValueError(
                "problem_sampling chooses a rollout batch by the results of those before; with "
                "max_staleness the next one is sampled before they are there. Remove one of them"
            )
        groups = self.rollout_batch_size // self.group_size
        if problems.replay is not None and int(problems.replay.share * groups) < 1:
            raise ValueError(
                f"problem_sampling.replay.share is {problems.replay.share}, less than one of the "
                f"{groups} groups of a rollout batch; raise it to {1 / groups:.3g} or more"
            )

    def _check_overlong(self) -> None:
        if self.overlong_buffer is None:
            if self.overlong_penalty != type(self).overlong_penalty:
                raise ValueError(
                    "overlong_penalty has no effect without overlong_buffer; set that, or remove it"
                )
            return
        if self.overlong_buffer > (self.max_completion_length or 0):
            raise ValueError(
                f"overlong_buffer must be at most max_completion_length "
                f"({self.max_completion_length}), got {self.overlong_buffer}"
            )
        if self.loss.advantage == "max_rl":
            raise ValueError(
                "overlong_buffer makes rewards below 0, which advantage max_rl cannot have; remove "
                "one of them"
            )

    def _check_batch_sizes(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size must be at least 2, got {self.group_size}: a baseline needs a group"
            )
        self._require_divisible("rollout_batch_size", "group_size")
        self._require_divisible("rollout_batch_size", "train_batch_size")
        if self.train_batch_size < self.group_size:
            raise ValueError(
                f"train_batch_size ({self.train_batch_size}) must be at least group_size "
                f"({self.group_size})"
            )
        self._check_train_batch()
        self._check_min_tokens("max_completion_length", "eval_max_completion_length")

    def _derived_values(self) -> dict[str, Any]:
        updates, advantage = self.updates_per_grpo_step, self.loss.advantage
        return {
            "advantage": advantage if isinstance(advantage, str) else self.advantage,
            "fused_lm_head": False if self.entropy_coef != 0 else self.fused_lm_head,
            "max_staleness": self.max_staleness or 0,
            "num_generations": self.group_size,
            "num_generations_eval": 1,
            "per_device_train_batch_size": self.train_batch_share,
            "generation_batch_size": self.rollout_batch_size,
            "num_iterations": self.epochs_per_rollout_batch,
            "max_steps": self.n_grpo_steps * updates,
            "num_train_epochs": 1.0,
            "scale_rewards": "group" if advantage == "group_mean_std" else "none",
            "epsilon": self.cliprange,
            "epsilon_high": self.cliprange_high,
            **self._evaluation_values(updates),
            **self._saving_values(self.save_every, updates),
        }
