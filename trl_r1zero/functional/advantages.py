"""Advantages of grouped rollouts: what each response's reward is compared with.

Shape legend: N prompts, G group size (responses per prompt). Flat tensors (N*G,) hold the G
responses of a prompt side by side: response g of prompt n at n * G + g.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trl_r1zero.common.numbers import as_rewards
from trl_r1zero.common.plugins import call_by_name

from ._checks import look_up, require_same_shape

RewardFn = Callable[[str, Any], dict[str, float]]
AdvantageFn = Callable[..., Tensor]


BASELINES = ("none", "mean", "leave_one_out")
NORMALIZERS = ("none", "std", "batch_std", "mean")


def _above_baseline(rewards_NG: Tensor, baseline: str) -> Tensor:
    if baseline == "none":
        return rewards_NG
    # Measured from the group's minimum first: the float mean of eight rewards of 0.1 need not be
    # 0.1, but the mean of eight zeros is 0.
    above_min_NG = rewards_NG - rewards_NG.amin(dim=1, keepdim=True)
    centred_NG = above_min_NG - above_min_NG.mean(dim=1, keepdim=True)
    if baseline == "mean":
        return centred_NG
    group_size = rewards_NG.shape[1]
    return centred_NG * (group_size / max(group_size - 1, 1))


def normalize_group_rewards(
    rewards_NG: Tensor, baseline: str, normalizer: str, advantage_eps: float
) -> Tensor:
    r"""Rewards minus a baseline, over a normaliser: every advantage of `ADVANTAGES`.

    .. math:: A_{ng} = \frac{r_{ng} - b_{ng}}{c_n + \epsilon}

    ============== ==================================================================
    baseline       :math:`b_{ng}`
    ============== ==================================================================
    none           0 (REINFORCE, Williams 1992)
    mean           :math:`\bar r_n`, the mean of the group
    leave_one_out  the mean of the group's other rewards, :math:`(G \bar r_n - r_{ng})/(G - 1)`
    ============== ==================================================================

    ============== ==================================================================
    normalizer     :math:`c_n`
    ============== ==================================================================
    none           no division, and no epsilon
    std            the unbiased standard deviation of the group's rewards
    batch_std      that of all :math:`r_{ng} - b_{ng}`, over all groups
    mean           :math:`\bar r_n`
    ============== ==================================================================

    A group of equal rewards has the advantage exactly 0 with a baseline. The spread of a single
    reward, whose unbiased estimate is 0/0, counts as 0; what would be divided by 0 is 0.

    Args:
        rewards_NG: (N, G).
        baseline: one of `BASELINES`.
        normalizer: one of `NORMALIZERS`.
        advantage_eps: epsilon, at least 0.

    Returns:
        (N, G), float32.

    Raises:
        ValueError: unknown baseline or normalizer.
    """
    look_up(dict.fromkeys(BASELINES), baseline, "baseline")
    look_up(dict.fromkeys(NORMALIZERS), normalizer, "normalizer")
    rewards_NG = rewards_NG.float()
    above_NG = _above_baseline(rewards_NG, baseline)
    if normalizer == "none":
        return above_NG
    group_size, count = rewards_NG.shape[1], rewards_NG.numel()
    if normalizer == "mean":
        scale = rewards_NG.mean(dim=1, keepdim=True)
    elif normalizer == "std":
        # Of a difference, like the baseline's, or a large offset would cost digits.
        centred_NG = _above_baseline(rewards_NG, "mean")
        scale = centred_NG.std(dim=1, keepdim=True, correction=min(1, group_size - 1))
    else:
        scale = above_NG.std(correction=min(1, count - 1))
    divisor = scale + advantage_eps
    return torch.where(divisor == 0, torch.zeros_like(above_NG), above_NG / divisor)


def _max_rl(rewards_NG: Tensor, advantage_eps: float) -> Tensor:
    if (rewards_NG < 0).any():
        raise ValueError(
            "advantage 'max_rl' divides by the group's mean reward, so rewards must be at least 0, "
            f"got {rewards_NG.min().item()}; choose another advantage, or shift the reward"
        )
    return normalize_group_rewards(rewards_NG, "mean", "mean", advantage_eps)


def _with(baseline: str, normalizer: str) -> AdvantageFn:
    return lambda rewards_NG, advantage_eps: normalize_group_rewards(
        rewards_NG, baseline, normalizer, advantage_eps
    )


# (rewards_NG (N, G)), and where a function names it advantage_eps -> advantages (N, G), float32
ADVANTAGES: dict[str, AdvantageFn] = {
    # Williams 1992
    "raw": _with("none", "none"),
    # Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, section 3.2
    "group_mean": _with("mean", "none"),
    # GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2
    "group_mean_std": _with("mean", "std"),
    # RLOO: Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740
    "leave_one_out": _with("leave_one_out", "none"),
    # REINFORCE++-baseline: Hu et al. 2025, arXiv:2501.03262
    "group_mean_batch_std": _with("mean", "batch_std"),
    # Tajwar et al. 2026, arXiv:2602.02710
    "max_rl": _max_rl,
}


def compute_group_advantages(
    rewards: Tensor, group_size: int, advantage: str | AdvantageFn, advantage_eps: float
) -> Tensor:
    """Advantages (N*G,), float32, of flat rewards, group by group.

    With `group_size` 1 every advantage but "raw" is 0, and nothing is learnt.

    Args:
        rewards: (N*G,), the responses of one prompt side by side.
        group_size: G.
        advantage: a key of `ADVANTAGES`, or a function like those there.
        advantage_eps: added to what is divided by; at least 0.

    Raises:
        ValueError: rewards are not one-dimensional, not finite, or not a whole number of groups;
            or another argument is outside of its range.
    """
    function = advantage
    if isinstance(function, str):
        function = look_up(ADVANTAGES, function, "advantage")
    rewards_NG = in_groups(rewards, group_size, advantage_eps)
    advantages_NG = call_by_name(function, (rewards_NG,), {"advantage_eps": advantage_eps})
    require_same_shape(advantages_NG, "advantages", rewards_NG, "rewards")
    return advantages_NG.reshape(-1)


def in_groups(rewards: Tensor, group_size: int, advantage_eps: float) -> Tensor:
    """Flat rewards as (N, G); errors as in `compute_group_advantages`."""
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if not advantage_eps >= 0:
        raise ValueError(f"advantage_eps must be at least 0, got {advantage_eps}")
    if rewards.dim() != 1 or len(rewards) % group_size != 0:
        raise ValueError(
            f"rewards must have shape (N * group_size,) with group_size={group_size}, "
            f"got {tuple(rewards.shape)}"
        )
    if not torch.isfinite(rewards).all():
        index = int((~torch.isfinite(rewards)).nonzero()[0])
        raise ValueError(
            f"rewards must be finite, got {rewards[index].item()} at index {index}; it would make "
            "its whole group's advantages NaN"
        )
    return rewards.reshape(-1, group_size)


def compute_rollout_rewards(
    reward_fn: RewardFn, rollout_responses: Sequence[str], repeated_ground_truths: Sequence[Any]
) -> tuple[Tensor, dict[str, float]]:
    """Grade rollouts.

    Args:
        reward_fn: (response, ground truth) -> dict with "reward" and, optionally, "format_reward"
            and "answer_reward".
        rollout_responses, repeated_ground_truths: equally many.

    Returns:
        The rewards, (number of responses,) float32; and metadata, floats: `reward_mean`,
        `reward_std` (unbiased; 0 for a single response), `reward_min`, `reward_max`;
        `format_reward_mean` and `answer_reward_mean` if every reward dict has the key.

    Raises:
        ValueError: no responses, or not as many ground truths; a reward is no finite number.
    """
    if len(rollout_responses) == 0 or len(rollout_responses) != len(repeated_ground_truths):
        raise ValueError(
            f"got {len(rollout_responses)} rollout_responses and {len(repeated_ground_truths)} "
            "repeated_ground_truths; there must be equally many, and at least one (repeat each "
            "ground truth group_size times)"
        )
    graded = list(map(reward_fn, rollout_responses, repeated_ground_truths))
    name = getattr(reward_fn, "__name__", "reward_fn")
    rewards = as_rewards(name, [scores["reward"] for scores in graded], rollout_responses)
    raw_rewards = torch.tensor(rewards, dtype=torch.float32)
    metadata = {
        "reward_mean": raw_rewards.mean().item(),
        "reward_std": raw_rewards.std(correction=min(1, len(raw_rewards) - 1)).item(),
        "reward_min": raw_rewards.min().item(),
        "reward_max": raw_rewards.max().item(),
    }
    for part in ("format_reward", "answer_reward"):
        if all(part in scores for scores in graded):
            metadata[f"{part}_mean"] = sum(scores[part] for scores in graded) / len(graded)
    return raw_rewards, metadata


def zero_group_fraction(advantages: Tensor, group_size: int) -> float:
    """The share of groups whose advantages, flat (N*G,), are all 0."""
    return (advantages.reshape(-1, group_size) == 0).all(dim=1).float().mean().item()


def compute_group_normalized_rewards(
    reward_fn: RewardFn,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[Any],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    r"""Grade rollouts and compare each reward with its group.

    .. math:: A_{ng} = \frac{r_{ng} - \bar r_n}{s_n + \epsilon} \quad\text{or, without
              `normalize\_by\_std`,}\quad A_{ng} = r_{ng} - \bar r_n

    with s the unbiased standard deviation (`normalize_group_rewards`).

    Args:
        reward_fn: (response, ground truth) -> dict with "reward" and, optionally,
            "format_reward" and "answer_reward".
        rollout_responses: N*G responses, the G responses of one prompt side by side.
        repeated_ground_truths: N*G ground truths, each prompt's repeated G times.
        group_size: G.
        advantage_eps: epsilon above, at least 0.
        normalize_by_std: whether to divide by the group's standard deviation.

    Returns:
        `advantages` and `raw_rewards`, (N*G,) float32, and the metadata of
        `compute_rollout_rewards` with `zero_advantage_group_fraction`, the share of groups whose
        advantages are all 0.

    Raises:
        ValueError: no responses, or not as many ground truths; as `compute_group_advantages`.
    """
    raw_rewards, metadata = compute_rollout_rewards(
        reward_fn, rollout_responses, repeated_ground_truths
    )
    advantage = "group_mean_std" if normalize_by_std else "group_mean"
    advantages = compute_group_advantages(raw_rewards, group_size, advantage, advantage_eps)
    metadata["zero_advantage_group_fraction"] = zero_group_fraction(advantages, group_size)
    return advantages, raw_rewards, metadata
