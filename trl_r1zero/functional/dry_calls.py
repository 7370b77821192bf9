"""What a plug-in gives for a tiny batch, before a run has cost anything.

Shape legend: B sequences, T length; N prompts, G group size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .advantages import AdvantageFn, compute_group_advantages
from .aggregation import AggregationFn, aggregate_loss
from .loss_types import LossType, SurrogateFn, compute_policy_gradient_loss

_REWARDS_NG = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
_OLD_BT = torch.tensor([[-0.5, -1.0, -2.0], [-0.1, -3.0, -1.0]])
_MASK_BT = torch.tensor([[True, True, True], [True, True, False]])


def _called(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the function is the user's, and may raise anything
        raise ValueError(
            f"{what}: on a tiny batch it raised {type(error).__name__}: {error}"
        ) from error


def _require_tensor(what: str, given: Any, shape: torch.Size) -> None:
    if not isinstance(given, Tensor) or given.shape != shape:
        got = tuple(given.shape) if isinstance(given, Tensor) else repr(given)[:100]
        raise ValueError(f"{what}: expected a tensor of shape {tuple(shape)}, got {got}")
    if not given.isfinite().all():
        raise ValueError(
            f"{what}: on a tiny batch it gave {given.tolist()}, expected finite numbers"
        )


def check_advantage(name: str, function: AdvantageFn, advantage_eps: float) -> None:
    """Call an advantage with the rewards of two groups of four; a ValueError if it fails there, or
    gives anything but finite advantages (N, G)."""
    what = f"advantage {name}"
    rewards = _REWARDS_NG.reshape(-1)
    given = _called(what, lambda: compute_group_advantages(rewards, 4, function, advantage_eps))
    _require_tensor(what, given, rewards.shape)


def check_surrogate(name: str, function: SurrogateFn, **settings: Any) -> None:
    """Call a surrogate with two rows of three tokens, on-policy and off; a ValueError if it fails
    there, gives anything but a finite loss (B, T) and metadata (B, T), or the loss has no gradient
    for the policy. `settings` as in `compute_policy_gradient_loss`."""
    what = f"surrogate {name}"
    settings |= {"advantages": torch.tensor([[1.0], [-1.0]]), "old_log_probs": _OLD_BT}
    loss_type, of = LossType("group_mean", function), {**settings, "response_mask": _MASK_BT}
    for step in (0.0, 0.1):
        policy_BT = (_OLD_BT + step).requires_grad_()
        given = _called(what, partial(compute_policy_gradient_loss, policy_BT, loss_type, **of))
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
            raise ValueError(f"{what}: expected (loss, metadata as a dict), got {given!r:.100}")
        loss_BT, metadata = given
        _require_tensor(what, loss_BT, policy_BT.shape)
        for key, tensor in metadata.items():
            _require_tensor(f"{what}: metadata {key!r}", tensor, policy_BT.shape)
        if not loss_BT.requires_grad:
            raise ValueError(f"{what}: its loss does not depend on the policy's log-probabilities")


def check_aggregation(name: str, function: AggregationFn, normalize_constant: float | None) -> None:
    """Call an aggregation with two rows, together and apart; a ValueError if it fails there, gives
    anything but a finite number, or the losses of the pieces do not add up to that of the whole."""
    what = f"aggregation {name}"

    of = {"num_sequences": 2, "num_tokens": 5, "normalize_constant": normalize_constant}

    def loss_of(rows: slice) -> Any:
        return aggregate_loss(_OLD_BT[rows], _MASK_BT[rows], function, **of)

    whole, *pieces = (
        _called(what, partial(loss_of, rows)) for rows in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    for loss in (whole, *pieces):
        _require_tensor(what, loss, torch.Size())
    if not math.isclose(sum(pieces), whole, rel_tol=1e-4, abs_tol=1e-6):
        raise ValueError(
            f"{what}: two rows give {whole.item():.6g} together and {sum(pieces).item():.6g} as a "
            "sum of two micro-batches, so the gradient would depend on the cut; divide by "
            "num_sequences, num_tokens or normalize_constant, which are those of the train batch"
        )
