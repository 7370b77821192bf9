"""Advantages of grouped rollouts: what each response's reward is compared with.

Shape legend: N prompts, G group size (responses per prompt). Flat tensors (N*G,) hold the G
responses of a prompt side by side: response g of prompt n at n * G + g.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._checks import look_up

RewardFn = Callable[[str, str], dict[str, float]]
AdvantageFn = Callable[[Tensor, float], Tensor]


def raw_reward(rewards_NG: Tensor, advantage_eps: float) -> Tensor:
    """The reward itself, no baseline (REINFORCE, Williams 1992). `advantage_eps` is not used."""
    return rewards_NG.float()


def group_mean_baseline(rewards_NG: Tensor, advantage_eps: float) -> Tensor:
    r"""Reward minus the mean of its group, :math:`r_{ng} - \bar r_n` (Dr. GRPO, arXiv:2503.20783).

    A group of equal rewards gets exactly 0. `advantage_eps` is not used.
    """
    # Measured from the group's minimum first: the float mean of eight rewards of 0.1 need not be
    # 0.1, but the mean of eight zeros is 0.
    above_min_NG = rewards_NG.float() - rewards_NG.float().amin(dim=1, keepdim=True)
    return above_min_NG - above_min_NG.mean(dim=1, keepdim=True)


def group_mean_std_baseline(rewards_NG: Tensor, advantage_eps: float) -> Tensor:
    r"""Group mean subtracted, divided by the group's spread: :math:`(r - \bar r)/(s + \epsilon)`.

    s is the unbiased standard deviation (G - 1 in the denominator). GRPO: Shao et al. 2024
    (arXiv:2402.03300), section 4.1.2. For a group of one, whose unbiased s is 0/0, s is taken as 0
    and the advantage, like every equal group's, is exactly 0, also at epsilon = 0.
    """
    centred_NG = group_mean_baseline(rewards_NG, advantage_eps)
    group_size = rewards_NG.shape[1]
    std_N1 = centred_NG.std(dim=1, keepdim=True, correction=min(1, group_size - 1))
    scaled_NG = centred_NG / (std_N1 + advantage_eps)
    return torch.where(std_N1 > 0, scaled_NG, torch.zeros_like(scaled_NG))


# (rewards_NG (N, G), advantage_eps) -> advantages (N, G), float32
ADVANTAGES: dict[str, AdvantageFn] = {
    "raw": raw_reward,
    "group_mean": group_mean_baseline,
    "group_mean_std": group_mean_std_baseline,
}


def compute_group_advantages(
    rewards: Tensor, group_size: int, advantage: str, advantage_eps: float
) -> Tensor:
    """Advantages (N*G,), float32, of flat rewards, group by group.

    With `group_size` 1 every advantage but "raw" is 0, and nothing is learnt.

    Args:
        rewards: (N*G,), the responses of one prompt side by side.
        group_size: G.
        advantage: a key of `ADVANTAGES`.
        advantage_eps: added to the group standard deviation where one divides by it; at least 0.

    Raises:
        ValueError: rewards are not one-dimensional, not finite, or not a whole number of groups;
            or another argument is outside of its range.
    """
    advantage_fn = look_up(ADVANTAGES, advantage, "advantage")
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
    rewards_NG = rewards.reshape(-1, group_size)
    return advantage_fn(rewards_NG, advantage_eps).reshape(-1)


def compute_group_normalized_rewards(
    reward_fn: RewardFn,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    r"""Grade rollouts and compare each reward with its group.

    .. math:: A_{ng} = \frac{r_{ng} - \bar r_n}{s_n + \epsilon} \quad\text{or, without
              `normalize\_by\_std`,}\quad A_{ng} = r_{ng} - \bar r_n

    with s the unbiased standard deviation (`group_mean_std_baseline`, `group_mean_baseline`).

    Args:
        reward_fn: (response, ground truth) -> dict with "reward" and, optionally,
            "format_reward" and "answer_reward".
        rollout_responses: N*G responses, the G responses of one prompt side by side.
        repeated_ground_truths: N*G ground truths, each prompt's repeated G times.
        group_size: G.
        advantage_eps: epsilon above, at least 0.
        normalize_by_std: whether to divide by the group's standard deviation.

    Returns:
        `advantages` and `raw_rewards`, (N*G,) float32, and `metadata`, floats: `reward_mean`,
        `reward_std` (unbiased, over all N*G; 0 for a single response), `reward_min`, `reward_max`;
        `format_reward_mean` and `answer_reward_mean` if every reward dict has the key;
        `zero_advantage_group_fraction`, the share of groups whose advantages are all 0.

    Raises:
        ValueError: no responses, or not as many ground truths; as `compute_group_advantages`.
    """
    if len(rollout_responses) == 0 or len(rollout_responses) != len(repeated_ground_truths):
        raise ValueError(
            f"got {len(rollout_responses)} rollout_responses and {len(repeated_ground_truths)} "
            "repeated_ground_truths; there must be equally many, and at least one (repeat each "
            "ground truth group_size times)"
        )
    graded = list(map(reward_fn, rollout_responses, repeated_ground_truths))
    raw_rewards = torch.tensor([scores["reward"] for scores in graded], dtype=torch.float32)
    advantage = "group_mean_std" if normalize_by_std else "group_mean"
    advantages = compute_group_advantages(raw_rewards, group_size, advantage, advantage_eps)

    is_zero_N = (advantages.reshape(-1, group_size) == 0).all(dim=1)
    metadata = {
        "reward_mean": raw_rewards.mean().item(),
        "reward_std": raw_rewards.std(correction=min(1, len(raw_rewards) - 1)).item(),
        "reward_min": raw_rewards.min().item(),
        "reward_max": raw_rewards.max().item(),
        "zero_advantage_group_fraction": is_zero_N.float().mean().item(),
    }
    for part in ("format_reward", "answer_reward"):
        if all(part in scores for scores in graded):
            metadata[f"{part}_mean"] = sum(scores[part] for scores in graded) / len(graded)
    return advantages, raw_rewards, metadata
