r"""From per-token losses to the scalar loss of a train batch, with explicit denominators.

Shape legend: B sequences of this micro-batch, T length.

The loss of a train batch is a sum over its sequences divided by numbers of the *whole* train
batch, over all micro-batches and all ranks, never of the piece at hand. So the losses of the pieces
add up to the loss of the batch, however it is cut:

.. math:: L = \sum_{\text{pieces}} L_{\text{piece}},\qquad
          \nabla L = \sum_{\text{pieces}} \nabla L_{\text{piece}}

Data-parallel wrappers that average gradients over W ranks divide once more; undo it by multiplying
each piece's loss by W.

A sequence without any response token has nothing to train and contributes exactly 0 to each of
these losses. (`masked_mean` itself is NaN there, as the mean of nothing is.) It still counts in
`num_sequences`.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from trl_r1zero.common.plugins import call_by_name

from ._checks import look_up, require_positive, require_same_shape
from .masking import masked_normalize


def _positive(value: float | None, name: str, aggregation: str) -> float:
    return require_positive(value, name, f"aggregation {aggregation!r}")


def _masked_mean(loss_BT: Tensor, mask_BT: Tensor, num_sequences: float | None) -> Tensor:
    sums_B = masked_normalize(loss_BT, mask_BT, 1.0, dim=1)
    # The sum of a row without tokens is 0; dividing it by 1 keeps it 0.
    counts_B = mask_BT.to(torch.bool).sum(dim=1).clamp(min=1)
    return (sums_B / counts_B).sum() / _positive(num_sequences, "num_sequences", "masked_mean")


def _masked_normalize(
    loss_BT: Tensor, mask_BT: Tensor, num_sequences: float | None, normalize_constant: float | None
) -> Tensor:
    denominator = _positive(normalize_constant, "normalize_constant", "masked_normalize")
    denominator *= _positive(num_sequences, "num_sequences", "masked_normalize")
    return masked_normalize(loss_BT, mask_BT, denominator)


def _constant(loss_BT: Tensor, mask_BT: Tensor, normalize_constant: float | None) -> Tensor:
    denominator = _positive(normalize_constant, "normalize_constant", "constant")
    return masked_normalize(loss_BT, mask_BT, denominator)


def _token_mean(loss_BT: Tensor, mask_BT: Tensor, num_tokens: float | None) -> Tensor:
    if num_tokens == 0 and not mask_BT.any():
        # A train batch without one response token: every sequence contributes 0.
        return masked_normalize(loss_BT, mask_BT, 1.0)
    return masked_normalize(loss_BT, mask_BT, _positive(num_tokens, "num_tokens", "token_mean"))


AggregationFn = Callable[..., Tensor]
# (loss_BT, mask_BT), and by name what a function has a parameter for: num_sequences, num_tokens,
# normalize_constant -> scalar
AGGREGATIONS: dict[str, AggregationFn] = {
    "masked_mean": _masked_mean,
    "masked_normalize": _masked_normalize,
    "token_mean": _token_mean,
    "constant": _constant,
}


def _function(aggregation: str | AggregationFn) -> AggregationFn:
    if isinstance(aggregation, str):
        return look_up(AGGREGATIONS, aggregation, "aggregation")
    return aggregation


def uses_constant(aggregation: str | AggregationFn) -> bool:
    """Whether an aggregation takes a `normalize_constant`."""
    return "normalize_constant" in inspect.signature(_function(aggregation)).parameters


def aggregate_loss(
    per_token_loss_BT: Tensor,
    response_mask_BT: Tensor,
    aggregation: str | AggregationFn = "masked_mean",
    *,
    num_sequences: float | None = None,
    normalize_constant: float | None = None,
    num_tokens: float | None = None,
) -> Tensor:
    r"""This piece's share of the train-batch loss.

    .. math::
        \text{masked\_mean:}\quad & \tfrac{1}{\text{num\_sequences}}
            \sum_i \frac{\sum_t m_{it} l_{it}}{\sum_t m_{it}} \\
        \text{masked\_normalize:}\quad & \frac{\sum_{it} m_{it} l_{it}}
            {\text{normalize\_constant} \cdot \text{num\_sequences}} \\
        \text{token\_mean:}\quad & \frac{\sum_{it} m_{it} l_{it}}{\text{num\_tokens}} \\
        \text{constant:}\quad & \frac{\sum_{it} m_{it} l_{it}}{\text{normalize\_constant}}

    with loss l, mask m and rows i of this piece. masked_mean is GRPO's (Shao et al. 2024,
    arXiv:2402.03300, eq. 3): each response weighs the same. masked_normalize is Dr. GRPO's (Liu et
    al. 2025, arXiv:2503.20783, section 3.2), token_mean DAPO's (Yu et al. 2025, arXiv:2503.14476,
    section 3.3): each token weighs the same. constant is masked_normalize with a single divisor.

    Args:
        per_token_loss_BT: (B, T). Half precision is summed in float32. Mask out what may be NaN
            *before* the per-token loss if its derivative there may be infinite.
        response_mask_BT: (B, T), bool or 0/1.
        aggregation: a key of `AGGREGATIONS`, or a function like those there.
        num_sequences: sequences of the whole train batch, over all micro-batches and ranks, rows
            without response tokens included. For masked_mean and masked_normalize.
        normalize_constant: for masked_normalize, such as the maximal response length; for constant,
            such as that times the sequences of the train batch.
        num_tokens: response tokens of the whole train batch, likewise. For token_mean. 0 is allowed
            only where the mask selects nothing: the loss is 0.

    Returns:
        A scalar, in float32 or float64; sum it (and its gradient) over the pieces.

    Raises:
        ValueError: unknown aggregation; a denominator it needs is missing or not above 0;
            normalize_constant given where it has no effect; shapes differ.
    """
    function = _function(aggregation)
    require_same_shape(response_mask_BT, "response_mask_BT", per_token_loss_BT, "per_token_loss_BT")
    if per_token_loss_BT.dim() != 2:
        raise ValueError(
            f"per_token_loss_BT must have shape (B, T), got {tuple(per_token_loss_BT.shape)}"
        )
    if normalize_constant is not None and not uses_constant(aggregation):
        raise ValueError(
            f"aggregation {aggregation!r} does not use normalize_constant, got "
            f"{normalize_constant}; leave it None or set aggregation to 'masked_normalize'"
        )
    loss_BT = per_token_loss_BT
    if loss_BT.dtype != torch.float64:
        loss_BT = loss_BT.float()
    named = {"num_sequences": num_sequences, "num_tokens": num_tokens}
    named["normalize_constant"] = normalize_constant
    return call_by_name(function, (loss_BT, response_mask_BT), named)
