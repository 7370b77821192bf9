"""Forward-to-backward of one micro-batch, for supervised fine-tuning and for GRPO.

Shape legend: B sequences of this micro-batch, T length.

Both steps are for a train batch of `gradient_accumulation_steps` micro-batches of B sequences each.
The trainers call `sft_microbatch_loss` and `grpo_microbatch_loss`, which take the true numbers of
any train batch, and do their own backward.
"""

from typing import Any

import torch
from torch import Tensor

from ._checks import require
from .aggregation import AggregationFn, aggregate_loss
from .kl import compute_kl_penalty
from .loss_types import LossType, compute_policy_gradient_loss
from .masking import zero_unselected
from .policy_losses import ClipRange, LossAndMetadata


def _num_sequences(policy_log_probs: Tensor, gradient_accumulation_steps: int) -> int:
    if gradient_accumulation_steps < 1:
        raise ValueError(
            f"gradient_accumulation_steps must be at least 1, got {gradient_accumulation_steps}"
        )
    return policy_log_probs.shape[0] * gradient_accumulation_steps


def sft_microbatch_loss(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    *,
    num_sequences: float,
    normalize_constant: float = 1.0,
) -> LossAndMetadata:
    r"""One micro-batch's share of the negative log-likelihood of its train batch's responses.

    .. math:: L = -\frac{1}{\text{num\_sequences}}
              \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{\text{normalize\_constant}}

    Arguments, metadata and errors are those of `sft_microbatch_train_step`, with `num_sequences`,
    the sequences of the whole train batch over all micro-batches and ranks. Returns the loss, a
    scalar with graph, and the metadata.
    """
    loss = aggregate_loss(
        -policy_log_probs,
        response_mask,
        "masked_normalize",
        num_sequences=num_sequences,
        normalize_constant=normalize_constant,
    )
    return loss, {"num_response_tokens": response_mask.to(torch.bool).sum()}


def sft_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> LossAndMetadata:
    r"""Negative log-likelihood of the responses; calls backward.

    `sft_microbatch_loss` with num_sequences = B * gradient_accumulation_steps:

    .. math:: L = -\frac{1}{B \cdot \text{gradient\_accumulation\_steps}}
              \sum_b \frac{\sum_t m_{bt} \ln \pi_\theta(y_{bt})}{\text{normalize\_constant}}

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1.
        gradient_accumulation_steps: micro-batches per optimizer step, at least 1.
        normalize_constant: divisor of each sequence's sum, above 0.

    Returns:
        The loss, a scalar without graph, already divided by the accumulation steps; and metadata:
        `num_response_tokens` (a scalar count).

    Raises:
        ValueError: shapes do not fit, or a number is not in its range.
    """
    num_sequences = _num_sequences(policy_log_probs, gradient_accumulation_steps)
    loss, metadata = sft_microbatch_loss(
        policy_log_probs,
        response_mask,
        num_sequences=num_sequences,
        normalize_constant=normalize_constant,
    )
    loss.backward()
    return loss.detach(), metadata


def _weighed(loss_BT: Tensor, weights: Tensor, response_mask: Tensor) -> Tensor:
    shape, batch_size = loss_BT.shape, loss_BT.shape[0]
    if weights.shape not in (shape, (batch_size, 1)):
        raise ValueError(
            f"sampler_weights must have shape (B, T) = {tuple(shape)} or (B, 1) = "
            f"({batch_size}, 1), got {tuple(weights.shape)}"
        )
    return loss_BT * zero_unselected(weights.detach().expand(shape), response_mask)


_OLD = ("old_log_probs", "correct_kl_bias")


def grpo_microbatch_loss(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    loss_type: str | LossType,
    *,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
    delta: float | None = None,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    correct_kl_bias: bool = False,
    token_entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    sampler_weights: Tensor | None = None,
    aggregation: str | AggregationFn = "masked_mean",
    num_sequences: float | None = None,
    normalize_constant: float | None = None,
    num_tokens: float | None = None,
) -> LossAndMetadata:
    r"""One micro-batch's share of the loss of its train batch.

    `compute_policy_gradient_loss` per token, times `sampler_weights`, plus :math:`\beta` times
    `compute_kl_penalty`; then `aggregate_loss`; less `entropy_coef` times the mean entropy of the
    train batch's tokens (Mnih et al. 2016, arXiv:1602.01783). Arguments not named here are theirs.

    Args:
        response_mask: (B, T), bool or 0/1. What stands under a 0 changes neither loss nor gradient.
        correct_kl_bias: give `compute_kl_penalty` the old log-probabilities too (needed then).
        token_entropy: (B, T), in nats, with graph; with num_tokens for an entropy_coef.
        sampler_weights: (B, T) or (B, 1), see `compute_sampler_importance_weights`; constants.

    Returns:
        The loss, and without graph: the loss type's tensors, `kl` (B, T), `num_response_tokens`.
    """
    policy_BT = zero_unselected(policy_log_probs, response_mask)
    old_BT = None if old_log_probs is None else zero_unselected(old_log_probs, response_mask)
    given: tuple[Any, ...] = (loss_type, raw_rewards, advantages, old_BT, cliprange)
    loss_BT, metadata = compute_policy_gradient_loss(
        policy_BT, *given, response_mask=response_mask, delta=delta
    )
    if sampler_weights is not None:
        loss_BT = _weighed(loss_BT, sampler_weights, response_mask)
    if beta != 0:
        ref_BT = require(ref_log_probs, "ref_log_probs", f"beta {beta}")
        sampled_BT = require(old_BT, *_OLD) if correct_kl_bias else None
        ref_BT = zero_unselected(ref_BT, response_mask)
        kl_BT = compute_kl_penalty(policy_BT, ref_BT, sampled_BT, kl_estimator)
        loss_BT, metadata["kl"] = loss_BT + beta * kl_BT, kl_BT.detach()
    metadata["num_response_tokens"] = response_mask.to(torch.bool).sum()
    of = {"num_sequences": num_sequences, "num_tokens": num_tokens}
    of["normalize_constant"] = normalize_constant
    loss = aggregate_loss(loss_BT, response_mask, aggregation, **of)
    if entropy_coef != 0:
        entropy_BT = require(token_entropy, "token_entropy", f"entropy_coef {entropy_coef}")
        bonus = aggregate_loss(entropy_BT, response_mask, "token_mean", num_tokens=num_tokens)
        return loss - entropy_coef * bonus, metadata
    return loss, metadata


def grpo_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    loss_type: str,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
    *,
    aggregation: str = "masked_mean",
    normalize_constant: float | None = None,
    num_tokens: float | None = None,
) -> LossAndMetadata:
    """Policy-gradient loss of one micro-batch; calls backward.

    `grpo_microbatch_loss` with num_sequences = B * gradient_accumulation_steps: by default the
    mean over each sequence's response tokens, the mean over the batch, over the accumulation steps.

    Args:
        policy_log_probs: (B, T), in nats, with graph.
        response_mask: (B, T), bool or 0/1. What is under a 0, NaN and inf included, changes neither
            loss nor gradient; `ratio` is 1 and `clipped` False there.
        gradient_accumulation_steps: micro-batches per optimizer step, at least 1.
        loss_type, raw_rewards, advantages, old_log_probs, cliprange: as in
            `compute_policy_gradient_loss`.
        aggregation, normalize_constant, num_tokens: as in `aggregate_loss`; num_tokens is that of
            all accumulated micro-batches.

    Returns:
        The loss, a scalar without graph, already divided by the accumulation steps; and metadata
        without graph: the (B, T) tensors of the loss type, and `num_response_tokens` (a scalar).

    Raises:
        ValueError: as the two functions above; gradient_accumulation_steps below 1.
    """
    num_sequences = _num_sequences(policy_log_probs, gradient_accumulation_steps)
    loss, metadata = grpo_microbatch_loss(
        policy_log_probs,
        response_mask,
        loss_type,
        raw_rewards=raw_rewards,
        advantages=advantages,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
        aggregation=aggregation,
        num_sequences=num_sequences,
        normalize_constant=normalize_constant,
        num_tokens=num_tokens,
    )
    loss.backward()
    return loss.detach(), metadata
