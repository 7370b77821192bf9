"""The loss of GRPO's micro-batches, and the log-probabilities that it compares with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_r1zero.functional import (
    compute_response_kl,
    compute_sampler_importance_weights,
    grpo_microbatch_loss,
)

from .grpo_config import R1ZeroGRPOConfig
from .policy_forward import PolicyForward
from .rollouts import MicroBatch, Rollout, RolloutBatch, sampler_log_probs, store_log_probs
from .timing import StepTimer
from .update_metrics import UpdateMetrics

# Cuts rows into this process's micro-batches.
Cut = Callable[[Sequence[Rollout]], list[MicroBatch]]


def keep_fixed_log_probs(
    policy: PolicyForward, batch: RolloutBatch, cut: Cut, timer: StepTimer, *, num_updates: int
) -> None:
    """Log-probabilities of the sampling policy and of the reference, as far as the updates on a
    rollout batch need them: attributes of its rows.

    Args:
        policy: Is the sampling policy still.
        batch: The rollout batch.
        cut: Cuts a train batch.
        timer: Gets the seconds of `old_log_probs` and `ref_log_probs`.
        num_updates: Optimizer updates before this.

    Raises:
        ValueError: `old_log_probs` is sampler, but the completions have none.
    """
    args: R1ZeroGRPOConfig = policy.args
    number = args.updates_per_epoch
    train_batches = [batch.train_batch(index, number) for index in range(number)]
    if args.old_log_probs == "sampler":
        for row in batch.rollouts:
            row.old_log_probs = sampler_log_probs(row)
            if row.old_log_probs is None:
                raise ValueError(
                    "old_log_probs is sampler, but the completions have no log-probabilities; "
                    "set it to policy"
                )
    elif args.updates_per_grpo_step > 1:
        # The first update's own forward pass gives those of its rows: the policy has not moved.
        model, current = policy.model(), num_updates % number
        policy.make_room()
        with timer.part("old_log_probs"):
            for index, rows in enumerate(train_batches):
                if index != current or has_dropout(model):
                    keep_log_probs(policy, model, cut(rows), "old_log_probs")
    if args.kl_in_loss:
        policy.make_room()
        with timer.part("ref_log_probs"):
            for rows in train_batches:
                _keep_ref_log_probs(policy, cut(rows))


def _keep_ref_log_probs(policy: PolicyForward, micro_batches: Sequence[MicroBatch]) -> None:
    if (reference := policy.reference()) is not None:
        keep_log_probs(policy, reference, micro_batches, "ref_log_probs")
    else:
        with policy.base_policy():
            keep_log_probs(policy, policy.model(), micro_batches, "ref_log_probs")


def response_kl(
    policy: PolicyForward, batch: RolloutBatch, cut: Cut, timer: StepTimer
) -> tuple[Tensor, float]:
    """The KL penalties of a rollout batch for its rewards, before the factor; a collective call.

    Arguments are those of `keep_fixed_log_probs`.

    Returns:
        The penalty of each row, in nats, and the mean over all response tokens.
    """
    # Copies that are all run, whatever is trained on later.
    rows = [replace(row, trained=True, advantage=math.nan) for row in batch.rollouts]
    policy.make_room()
    with timer.part("ref_log_probs"):
        micro_batches = cut(rows)
        keep_log_probs(policy, policy.model(), micro_batches, "old_log_probs")
        _keep_ref_log_probs(policy, micro_batches)
    own = [
        (number, _penalty(row, policy.args.kl_estimator))
        for number, row in enumerate(rows)
        if row.ref_log_probs is not None
    ]
    own = gather_object(own) if policy.processes > 1 else own
    penalties = torch.tensor([penalty for _, penalty in sorted(own)])
    tokens = max(sum(row.length for row in rows), 1)
    return penalties, penalties.sum().item() / tokens


def _penalty(row: Rollout, estimator: str) -> float:
    old_1T, ref_1T = (
        log_probs.unsqueeze(0)
        for log_probs in (row.old_log_probs, row.ref_log_probs)
        if log_probs is not None
    )
    return compute_response_kl(old_1T, ref_1T, torch.ones_like(old_1T), estimator).item()


def has_dropout(model: Any) -> bool:
    """Whether a forward pass in training differs from one in sampling."""
    config = model.config.get_text_config()
    in_attention = (getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    in_modules = (m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
    return any(p > 0 for p in (*in_attention, *in_modules))


def keep_log_probs(
    policy: PolicyForward, model: Any, micro_batches: Sequence[MicroBatch], attribute: str
) -> None:
    """Keep a model's log-probabilities in an attribute of the rows."""
    was_training = model.training
    model.eval()  # no dropout, as in sampling
    with torch.no_grad():
        for micro_batch in micro_batches:
            output = policy.log_probs(model, micro_batch, policy.args.temperature)
            store_log_probs(micro_batch, output["log_probs"], attribute)
    model.train(was_training)


def rollout_loss(
    policy: PolicyForward, model: torch.nn.Module, batch: MicroBatch, metrics: UpdateMetrics
) -> Tensor:
    """A micro-batch's share of the loss of its train batch; `metrics` gets sums over its tokens."""
    args: R1ZeroGRPOConfig = policy.args
    output = policy.log_probs(
        model,
        batch,
        args.temperature,
        return_token_entropy=True,
        entropy_has_graph=args.entropy_coef != 0,
    )
    log_probs_BT, mask_BT = output["log_probs"].detach(), batch.response_mask
    # Before the first update on a rollout batch the sampling policy is the policy itself.
    old_log_probs_BT = log_probs_BT
    if batch.old_log_probs is not None:
        # NaN stands for what the sampler could not tell.
        old_log_probs_BT = batch.old_log_probs.where(~batch.old_log_probs.isnan(), log_probs_BT)
    elif args.updates_per_grpo_step > 1:
        store_log_probs(batch, old_log_probs_BT, "old_log_probs")
    loss, metadata = grpo_microbatch_loss(
        output["log_probs"],
        mask_BT,
        args.loss,
        # With no baseline they are the rewards, less a penalty where there is one.
        raw_rewards=batch.advantages,
        advantages=batch.advantages,
        old_log_probs=old_log_probs_BT,
        cliprange=args.clip_bounds,
        delta=args.delta,
        ref_log_probs=batch.ref_log_probs,
        beta=args.beta if args.kl_in_loss else 0.0,
        kl_estimator=args.kl_estimator,
        correct_kl_bias=args.use_bias_correction_kl,
        token_entropy=output["token_entropy"],
        entropy_coef=args.entropy_coef,
        sampler_weights=sampler_weights(args, batch, old_log_probs_BT, metrics),
        aggregation=args.bound("aggregation"),
        num_sequences=batch.num_sequences,
        num_tokens=batch.num_tokens,
        normalize_constant=args.sequence_divisor,
    )
    metrics.add(
        trained_tokens=mask_BT.sum(), entropy=output["token_entropy"].detach()[mask_BT].sum()
    )
    if "kl" in metadata:
        metrics.add(kl=metadata["kl"][mask_BT].sum())
    if batch.old_log_probs is not None or args.updates_per_grpo_step > 1:
        metrics.add(ratio=(log_probs_BT - old_log_probs_BT)[mask_BT].exp().sum())
        if any(row.logged for row in batch.rollouts):
            store_log_probs(batch, log_probs_BT, "last_log_probs")
        if "clipped" in metadata:
            metrics.add(clip_fraction=metadata["clipped"][mask_BT].sum())
    return loss


def sampler_weights(
    args: R1ZeroGRPOConfig, batch: MicroBatch, old_log_probs_BT: Tensor, metrics: UpdateMetrics
) -> Tensor | None:
    """What corrects for vLLM's probabilities, which are not quite the trainer's; None if off.

    Their difference is logged in either case: it grows when weights fail to reach the server.
    """
    mask_BT, sampler_BT = batch.response_mask, batch.sampler_log_probs
    if args.old_log_probs == "policy" and args.use_vllm and sampler_BT is not None:
        difference = (old_log_probs_BT - sampler_BT)[mask_BT].abs()
        # NaN stands for what the sampler could not tell.
        metrics.add_values("sampler_log_prob_diff", difference[~difference.isnan()])
    if not args.vllm_importance_sampling_correction:
        return None
    if sampler_BT is None:
        raise ValueError(
            "vllm_importance_sampling_correction needs the sampler's log-probabilities, and "
            "the completions have none; set it to false"
        )
    weights = compute_sampler_importance_weights(
        old_log_probs_BT,
        sampler_BT,
        mask_BT,
        args.vllm_importance_sampling_mode,
        args.vllm_importance_sampling_clip_min,
        args.vllm_importance_sampling_clip_max,
    )
    # One weight per token, or per response with tokens.
    weighed = mask_BT if weights.shape == mask_BT.shape else mask_BT.any(dim=1, keepdim=True)
    metrics.add_values("importance_weight", weights[weighed])
    return weights
