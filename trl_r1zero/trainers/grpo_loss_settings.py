"""The settings of GRPO's loss: advantage, surrogate, aggregation, KL penalty, entropy bonus."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trl_r1zero.common.arguments import NonNegative, Positive, arg
from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.plugins import PlugIns, Role, is_dotted
from trl_r1zero.functional import (
    ADVANTAGES,
    AGGREGATIONS,
    KL_ESTIMATORS,
    LOSS_TYPES,
    SURROGATES,
    LossType,
    check_advantage,
    check_aggregation,
    check_surrogate,
    get_loss_type,
    uses_constant,
)

from .base_config import StrictConfig
from .trl_fields import TRL_LOSS_TYPES

KL_PLACES = ("loss", "reward")
_OR_A_FUNCTION = "or the dotted path of a function (docs/estimators.md)"
_CLIPPING = "grpo_clip, gspo, gspo_token, cispo"


@dataclass
class LossSettings(PlugIns, StrictConfig):
    """What the loss of a train batch is made of; docs/estimators.md has every formula."""

    roles: ClassVar = {
        "advantage": Role("advantage", ("rewards",), ("advantage_eps",), ADVANTAGES),
        "surrogate": Role(
            "surrogate",
            ("advantages", "policy_log_probs", "old_log_probs"),
            ("cliprange", "response_mask", "delta"),
            SURROGATES,
        ),
        "aggregation": Role(
            "aggregation",
            ("per_token_loss", "response_mask"),
            ("num_sequences", "num_tokens", "normalize_constant"),
            AGGREGATIONS,
        ),
    }

    loss_type: str = arg(
        "reinforce_with_baseline",
        f"An advantage and a surrogate in one name: {', '.join(LOSS_TYPES)}, or the dotted path of "
        "a LossType.",
    )
    advantage: str | None = arg(
        None, f"In place of the loss type's advantage: {', '.join(ADVANTAGES)}, {_OR_A_FUNCTION}."
    )
    surrogate: str | None = arg(
        None, f"In place of the loss type's surrogate: {', '.join(SURROGATES)}, {_OR_A_FUNCTION}."
    )
    use_std_normalization: bool | None = arg(
        None,
        "Divide advantages by the group's standard deviation. Unset: yes where the loss type has a "
        "baseline.",
    )
    advantage_eps: NonNegative = arg(1e-6, "Added to what advantages are divided by.")
    cliprange: NonNegative = arg(
        0.2, f"{_CLIPPING}: the ratio is clipped to [1 - cliprange, 1 + cliprange]."
    )
    cliprange_high: NonNegative | None = arg(
        None, f"{_CLIPPING}: another upper bound, 1 + cliprange_high (DAPO's clip-higher)."
    )
    delta: Positive | None = arg(
        None,
        "grpo_clip: an upper bound of the ratio where the advantage is negative (two-sided clip).",
    )
    beta: NonNegative = arg(0.0, "Factor of the KL penalty. 0: no penalty, no reference model.")
    kl_estimator: str = arg("k3", f"With beta: {', '.join(KL_ESTIMATORS)}.")
    kl_in: str = arg(
        "loss",
        "With beta: the penalty is added to the loss of each token, or, summed over a response, "
        f"taken off its reward: {', '.join(KL_PLACES)}.",
    )
    entropy_coef: NonNegative = arg(
        0.0, "Factor of the entropy bonus: the mean entropy of response tokens, taken off the loss."
    )
    aggregation: str = arg(
        "masked_mean",
        f"From per-token losses to one number: {', '.join(AGGREGATIONS)}, {_OR_A_FUNCTION}.",
    )
    normalize_constant: Positive | None = arg(
        None,
        "masked_normalize: the divisor of each sequence's sum. Unset: max_completion_length. "
        "constant: that of the sum over all. Unset: train_batch_size times max_completion_length.",
    )
    if TYPE_CHECKING:  # of R1ZeroGRPOConfig
        train_batch_size: int = 0
        max_completion_length: int | None = None

    @property
    def loss(self) -> LossType:
        """The advantage and the surrogate that the settings stand for."""
        named, use_std = get_loss_type(self.loss_type), self.use_std_normalization
        if use_std is None:
            use_std = named.advantage == "group_mean"
        advantage = self.bound("advantage") or named.advantage_with(use_std)
        return LossType(advantage, self.bound("surrogate") or named.surrogate)

    @property
    def clip_bounds(self) -> float | tuple[float, float]:
        """`cliprange` as the functional losses take it."""
        high = self.cliprange_high
        return self.cliprange if high is None else (self.cliprange, high)

    @property
    def sequence_divisor(self) -> float | None:
        """The `normalize_constant` of the aggregation; None for those that have none."""
        if not self._uses_constant:
            return None
        if self.normalize_constant is not None:
            return self.normalize_constant
        sequences = self.train_batch_size if self.aggregation == "constant" else 1
        return float((self.max_completion_length or 1) * sequences)

    @property
    def _uses_constant(self) -> bool:
        return uses_constant(self.bound("aggregation"))

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL penalty."""
        return self.beta != 0 and self.kl_in == "loss"

    @property
    def kl_in_reward(self) -> bool:
        """Whether the rewards have one."""
        return self.beta != 0 and self.kl_in == "reward"

    def _check_loss(self) -> None:
        if self.loss_type in TRL_LOSS_TYPES:
            raise ValueError(
                f"loss_type {self.loss_type!r} is TRL's name of a fused combination; here it is "
                f"{TRL_LOSS_TYPES[self.loss_type]}"
            )
        self._check_plugin("aggregation")
        if self.normalize_constant is not None and not self._uses_constant:
            raise ValueError(
                "normalize_constant is used by aggregation constant or masked_normalize only, and "
                f"aggregation is {self.aggregation}; remove one"
            )
        self._check_axes()
        self._check_clip()
        self._check_kl_and_entropy()
        self._call_plugins()

    def _check_plugin(self, kind: str) -> None:
        if not is_dotted(getattr(self, kind)):
            self._check_choice(kind, self.roles[kind].known, " Or give a dotted path.")

    def _call_plugins(self) -> None:
        """Each on a tiny batch."""
        self.check_options()
        advantage, surrogate = self.loss.advantage, self.loss.surrogate
        if callable(advantage):
            check_advantage(self.advantage or self.loss_type, advantage, self.advantage_eps)
        if callable(surrogate):
            settings = {"cliprange": self.clip_bounds, "delta": self.delta}
            check_surrogate(self.surrogate or self.loss_type, surrogate, **settings)
        if is_dotted(self.aggregation):
            check_aggregation(self.aggregation, self.bound("aggregation"), self.sequence_divisor)

    def _check_axes(self) -> None:
        """One of loss_type and the axes by themselves says each."""
        named = get_loss_type(self.loss_type)
        if self.surrogate is not None:
            self._check_plugin("surrogate")
            if self.loss_type != type(self).loss_type:
                raise ValueError(
                    f"loss_type {self.loss_type} has a surrogate, and surrogate is "
                    f"{self.surrogate}; leave out one"
                )
        if self.advantage is not None:
            self._check_plugin("advantage")
            if self.use_std_normalization is not None or named.advantage == "raw":
                other = "use_std_normalization" if named.advantage != "raw" else "loss_type"
                raise ValueError(
                    f"advantage is {self.advantage}, and {other} {getattr(self, other)} says "
                    "another; leave out one"
                )
        loss = self.loss  # a ValueError says so where there is no baseline to normalise
        for kind, part in (("advantage", loss.advantage), ("surrogate", loss.surrogate)):
            known = self.roles[kind].known
            if isinstance(part, str) and part not in known:
                raise ValueError(
                    f"loss_type {self.loss_type}: {unknown_name_message(kind, part, known)}"
                )

    def _check_clip(self) -> None:
        surrogate = self.loss.surrogate
        of = f"loss_type is {self.loss_type}" if self.surrogate is None else f"it is {surrogate}"
        if not isinstance(surrogate, str):
            return
        if self.cliprange_high is not None and surrogate in ("reinforce", "unclipped_ratio"):
            raise ValueError(
                f"cliprange_high is used by grpo_clip only, and by the surrogates that clip, and "
                f"{of}; remove it"
            )
        if self.delta is not None:
            if surrogate != "clipped_ratio":
                raise ValueError(f"delta is used by grpo_clip only, and {of}; remove it")
            high = self.cliprange if self.cliprange_high is None else self.cliprange_high
            if self.delta <= 1 + high:
                raise ValueError(
                    f"delta must be above the upper bound of the clip, {1 + high}, got {self.delta}"
                )

    def _check_kl_and_entropy(self) -> None:
        self._check_choice("kl_estimator", KL_ESTIMATORS)
        self._check_choice("kl_in", KL_PLACES)
        for name in ("kl_estimator", "kl_in"):
            if self.beta == 0 and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} has no effect without beta; set beta, or remove it")
        if self.entropy_coef != 0 and self.fused_lm_head:
            raise ValueError(
                "entropy_coef needs the gradient of the entropies, which the fused head does not "
                "give; set fused_lm_head to false, or leave it unset"
            )
