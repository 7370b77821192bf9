"""The assignment's 2026 edition: its functions, on those that the trainer runs.

Two names of 2025 have other arguments in 2026 (`compute_group_normalized_rewards`,
`compute_policy_gradient_loss`), so those of 2026 are here, and those of 2025 at the package's root.
What did not change is here too: `tokenize_prompt_and_output`, `get_response_log_probs`,
`PackedSFTDataset`, `iterate_batches`, `parse_mmlu_response`, `parse_gsm8k_response` and
`compute_per_instance_dpo_loss`.

Shape legend: B sequences, T length; N prompts, G group size, so B = N*G rollouts, the G of a prompt
side by side.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.data.packing import PackedSFTDataset, iterate_batches
from trl_r1zero.data.tokenization import tokenize_prompt_and_output
from trl_r1zero.functional import (
    LossType,
    aggregate_loss,
    compute_rollout_rewards,
    get_response_log_probs,
    grpo_microbatch_loss,
    in_groups,
    masked_mean,
    normalize_group_rewards,
    zero_group_fraction,
)
from trl_r1zero.functional import compute_policy_gradient_loss as loss_of_type
from trl_r1zero.rewards import parse_gsm8k_response, parse_mmlu_response
from trl_r1zero.trainers.preference import compute_per_instance_dpo_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PackedSFTDataset",
    "aggregate_loss_across_microbatch",
    "compute_group_normalized_rewards",
    "compute_per_instance_dpo_loss",
    "compute_policy_gradient_loss",
    "compute_rollout_rewards",
    "get_response_log_probs",
    "grpo_train_step",
    "iterate_batches",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "tokenize_prompt_and_output",
]

# The edition's names -> those of the library.
BASELINES = {"mean": "mean", "none": "none"}
NORMALIZERS = {"std": "std", "mean": "mean", "none": "none"}
METHODS = {
    "none": "reinforce",
    "noclip": "unclipped_ratio",
    "grpo": "clipped_ratio",
    "gspo": "gspo",
}
NORMALIZATIONS = {"sequence": "masked_mean", "constant": "constant"}


def _ours(names: dict[str, str], argument: str, value: str) -> str:
    if value not in names:
        raise ValueError(unknown_name_message(argument, value, names))
    return names[value]


def compute_group_normalized_rewards(
    raw_rewards: Tensor,
    group_size: int,
    baseline: str = "mean",
    advantage_eps: float = 1e-6,
    advantage_normalizer: str = "std",
) -> tuple[Tensor, dict[str, float]]:
    r"""Compare each reward with its group: `normalize_group_rewards` of flat rewards.

    .. math:: A_{ng} = \frac{r_{ng} - b_n}{c_n + \epsilon}

    Args:
        raw_rewards: (N*G,).
        group_size: G.
        baseline: "mean", the group's, or "none", 0.
        advantage_eps: epsilon, at least 0.
        advantage_normalizer: what to divide by: "std", the group's unbiased standard deviation;
            "mean", the group's mean (MaxRL, Tajwar et al. 2026, arXiv:2602.02710); "none", nothing,
            and no epsilon.

    Returns:
        The advantages, (N*G,) float32; and metadata, floats: `advantage_mean`, `advantage_min`,
        `advantage_max`, and `zero_advantage_group_fraction`, the share of groups whose advantages
        are all 0.

    Raises:
        ValueError: an unknown name; rewards are not finite, or not a whole number of groups.
    """
    rewards_NG = in_groups(torch.as_tensor(raw_rewards), group_size, advantage_eps)
    advantages = normalize_group_rewards(
        rewards_NG,
        _ours(BASELINES, "baseline", baseline),
        _ours(NORMALIZERS, "advantage_normalizer", advantage_normalizer),
        advantage_eps,
    ).reshape(-1)
    metadata = {
        "advantage_mean": advantages.mean().item(),
        "advantage_min": advantages.min().item(),
        "advantage_max": advantages.max().item(),
        "zero_advantage_group_fraction": zero_group_fraction(advantages, group_size),
    }
    return advantages, metadata


def _loss_type(importance_reweighting_method: str) -> LossType:
    argument = "importance_reweighting_method"
    # What the advantage was made of is not the loss's business.
    return LossType("group_mean", _ours(METHODS, argument, importance_reweighting_method))


def compute_policy_gradient_loss(
    raw_rewards_or_advantages: Tensor,
    policy_log_probs: Tensor,
    importance_reweighting_method: str = "none",
    old_log_probs: Tensor | None = None,
    cliprange: float | tuple[float, float] | None = None,
    response_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The loss of each token, unmasked.

    ====== ===================================================================================
    method loss
    ====== ===================================================================================
    none   :math:`-A \ln \pi_\theta`
    noclip :math:`-\rho A`, with :math:`\rho = \pi_\theta / \pi_{old}` of the token
    grpo   :math:`-\min(\rho A, \operatorname{clip}(\rho, 1 - c, 1 + c) A)`
    gspo   the same with the response's ratio :math:`(\prod_t \rho_t)^{1/|y|}` for all tokens
    ====== ===================================================================================

    Arguments that a method does not use may be given and are ignored.

    Args:
        raw_rewards_or_advantages: A, (B, 1) or (B,); never differentiated.
        policy_log_probs: (B, T), in nats.
        importance_reweighting_method: see above.
        old_log_probs: (B, T), in nats, under the policy that sampled; for all but "none". Never
            differentiated.
        cliprange: c, or a pair (low, high); for "grpo" and "gspo".
        response_mask: (B, T), bool or 0/1: the response's tokens; for "gspo".

    Returns:
        The loss (B, T); and metadata without graph: `ratio` (B, T) for all but "none", and for
        "grpo" and "gspo" `clipped` (B, T), bool, and `clip_fraction`, the share of clipped tokens
        (of the mask's, where there is one).

    Raises:
        ValueError: an unknown method; an argument that it needs is missing; shapes do not fit.
    """
    loss_type = _loss_type(importance_reweighting_method)
    if importance_reweighting_method == "gspo" and response_mask is None:
        raise ValueError(
            "importance_reweighting_method 'gspo' needs response_mask, got None; the ratio is that "
            "of the response's tokens"
        )
    weights = raw_rewards_or_advantages
    loss_BT, metadata = loss_of_type(
        policy_log_probs,
        loss_type,
        advantages=weights.unsqueeze(1) if weights.dim() == 1 else weights,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
        response_mask=response_mask,
    )
    if "clipped" in metadata:
        clipped_BT = metadata["clipped"]
        mask = torch.ones_like(clipped_BT) if response_mask is None else response_mask
        metadata["clip_fraction"] = masked_mean(clipped_BT.float(), mask)
    return loss_BT, metadata


def aggregate_loss_across_microbatch(
    per_token_policy_gradient_loss: Tensor,
    mask: Tensor,
    loss_normalization: str = "sequence",
    normalization_constant: float | None = None,
) -> Tensor:
    r"""From the losses of tokens to one number: `aggregate_loss` of these sequences alone.

    .. math:: \text{sequence:}\ \frac{1}{B} \sum_b \frac{\sum_t m_{bt} l_{bt}}{\sum_t m_{bt}},\qquad
              \text{constant:}\ \frac{1}{Z} \sum_{bt} m_{bt} l_{bt}

    A sequence without any token adds 0 and counts in B.

    Args:
        per_token_policy_gradient_loss: (B, T).
        mask: (B, T), bool or 0/1. What stands under a 0 changes nothing.
        loss_normalization: "sequence" or "constant".
        normalization_constant: Z, above 0, for "constant"; "sequence" ignores it.

    Returns:
        A scalar, with graph.

    Raises:
        ValueError: an unknown loss_normalization; "constant" without Z; shapes differ.
    """
    settings = _settings("none", loss_normalization, normalization_constant)
    return aggregate_loss(
        per_token_policy_gradient_loss,
        mask,
        settings["aggregation"],
        num_sequences=len(per_token_policy_gradient_loss),
        normalize_constant=settings["normalize_constant"],
    )


def grpo_train_step(
    model: torch.nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    optimizer: torch.optim.Optimizer,
    gradient_accumulation_steps: int,
    max_grad_norm: float | None,
    reward_fn: Callable[[str, Any], dict[str, float]],
    repeated_prompts: Sequence[str],
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[Any],
    group_size: int,
    baseline: str = "mean",
    advantage_eps: float = 1e-6,
    advantage_normalizer: str = "std",
    importance_reweighting_method: str = "none",
    old_log_probs: Tensor | None = None,
    cliprange: float | tuple[float, float] | None = None,
    loss_normalization: str = "sequence",
    normalization_constant: float | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """One optimizer step on the rollouts, in micro-batches whose number changes nothing.

    Denominators are those of all rows, so the gradient is that of the whole batch, also if pieces
    are not equally large. Afterwards every `.grad` is None. The step is made even if all advantages
    are 0. Arguments not named here are those of the functions above.

    Args:
        model: a causal LM, in the mode of the caller.
        gradient_accumulation_steps: micro-batches, from 1 to the number of rows.
        max_grad_norm: the gradient is clipped to it; None: not clipped.
        old_log_probs: (B, T), at the places of `tokenize_prompt_and_output`.
        loss_normalization, normalization_constant: of all rows.

    Returns:
        The loss, a scalar without graph; and metadata: that of rewards and advantages, `grad_norm`
        before clipping, `raw_rewards` and `advantages` (B,), and where the method has them the
        means over response tokens `ratio` and `clip_fraction`.

    Raises:
        ValueError: as the functions above; numbers of rows and micro-batches do not fit.
    """
    raw_rewards, metadata = compute_rollout_rewards(
        reward_fn, rollout_responses, repeated_ground_truths
    )
    advantages, of_advantages = compute_group_normalized_rewards(
        raw_rewards, group_size, baseline, advantage_eps, advantage_normalizer
    )
    settings = _settings(importance_reweighting_method, loss_normalization, normalization_constant)
    settings |= {"cliprange": cliprange, "num_sequences": len(rollout_responses)}
    old = old_log_probs if importance_reweighting_method != "none" else None
    rows = _rows(model, tokenizer, repeated_prompts, rollout_responses, old)
    rows["advantages"] = advantages.unsqueeze(1).to(rows["labels"].device)
    _drop_gradients(model, optimizer)
    loss, of_tokens = _accumulate(model, rows, settings, gradient_accumulation_steps)
    limit = math.inf if max_grad_norm is None else max_grad_norm
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    _drop_gradients(model, optimizer)
    of_step = {"grad_norm": grad_norm.item(), "raw_rewards": raw_rewards, "advantages": advantages}
    return loss, {**metadata, **of_advantages, **of_tokens, **of_step}


def _settings(method: str, loss_normalization: str, constant: float | None) -> dict[str, Any]:
    """Of `grpo_microbatch_loss`."""
    aggregation = _ours(NORMALIZATIONS, "loss_normalization", loss_normalization)
    if aggregation != "constant":
        constant = None
    elif constant is None:
        raise ValueError(
            "loss_normalization 'constant' needs normalization_constant, got None; the edition's "
            "is the number of rollouts of the batch times the maximum response length"
        )
    return {
        "loss_type": _loss_type(method),
        "aggregation": aggregation,
        "normalize_constant": constant,
    }


def _rows(
    model: torch.nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    responses: Sequence[str],
    old_log_probs: Tensor | None,
) -> dict[str, Tensor]:
    """Tensors of all rows, on the device of the model."""
    if len(prompts) != len(responses):
        raise ValueError(
            f"got {len(prompts)} repeated_prompts and {len(responses)} rollout_responses; there "
            "must be equally many (repeat each prompt group_size times)"
        )
    rows = tokenize_prompt_and_output(list(prompts), list(responses), tokenizer)
    if old_log_probs is not None:
        if old_log_probs.shape != rows["labels"].shape:
            raise ValueError(
                f"old_log_probs has shape {tuple(old_log_probs.shape)}, but the labels of "
                f"tokenize_prompt_and_output have shape {tuple(rows['labels'].shape)}; both must "
                "have the same shape"
            )
        rows["old_log_probs"] = old_log_probs
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in rows.items()}


def _accumulate(
    model: torch.nn.Module, rows: dict[str, Tensor], settings: dict[str, Any], steps: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss and gradient, summed over micro-batches; means over response tokens."""
    num_rows = len(rows["labels"])
    if not 1 <= steps <= num_rows:
        raise ValueError(
            f"gradient_accumulation_steps must be from 1 to the number of rows, {num_rows}, got "
            f"{steps}"
        )
    losses: list[Tensor] = []
    sums: dict[str, float] = {}
    for values in zip(*(tensor.tensor_split(steps) for tensor in rows.values()), strict=True):
        piece: dict[str, Any] = dict(zip(rows, values, strict=True))
        mask_BT = piece["response_mask"].bool()
        log_probs = get_response_log_probs(model, piece.pop("input_ids"), piece.pop("labels"))
        loss, metadata = grpo_microbatch_loss(log_probs["log_probs"], **piece, **settings)
        loss.backward()
        losses.append(loss.detach())
        for name in metadata.keys() & {"ratio", "clipped"}:
            sums[name] = sums.get(name, 0.0) + metadata[name][mask_BT].sum().item()
    tokens = max(int(rows["response_mask"].sum()), 1)
    names = {"ratio": "ratio", "clipped": "clip_fraction"}
    return torch.stack(losses).sum(), {names[key]: total / tokens for key, total in sums.items()}


def _drop_gradients(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad(set_to_none=True)
    optimizer.zero_grad(set_to_none=True)
