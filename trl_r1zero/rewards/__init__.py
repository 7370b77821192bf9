"""Reward functions: text in, `{"format_reward", "answer_reward", "reward"}` out. No torch in this
package."""

from .benchmarks import gsm8k_reward_fn, mmlu_reward_fn
from .bounds import LIMITS, bound_counts, reset_bound_counts
from .extraction import parse_gsm8k_response, parse_mmlu_response
from .math_reward import explain, lenient_opinion, math_reward_fn
from .pool import PoolResult, RewardPool
from .registry import (
    REWARDS,
    is_correct,
    resolve_reward,
    reward_and_explanation,
    reward_identity,
)
from .reward_functions import Explanation, question_only_reward_fn, r1_zero_reward_fn

__all__ = [
    "LIMITS",
    "REWARDS",
    "Explanation",
    "PoolResult",
    "RewardPool",
    "bound_counts",
    "explain",
    "gsm8k_reward_fn",
    "is_correct",
    "lenient_opinion",
    "math_reward_fn",
    "mmlu_reward_fn",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "question_only_reward_fn",
    "r1_zero_reward_fn",
    "reset_bound_counts",
    "resolve_reward",
    "reward_and_explanation",
    "reward_identity",
]
