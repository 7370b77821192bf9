"""Losses on pairs of responses, of which one is preferred.

Shape legend: B pairs. All inputs are log-probabilities of whole responses, summed over their tokens
(`masked_normalize(log_probs, response_mask, 1.0, dim=1)`).
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from ._checks import require_positive, require_same_shape
from .policy_losses import LossAndMetadata


def dpo_loss(
    policy_chosen_log_probs: Tensor,
    policy_rejected_log_probs: Tensor,
    ref_chosen_log_probs: Tensor,
    ref_rejected_log_probs: Tensor,
    beta: float,
) -> LossAndMetadata:
    r"""Direct preference optimisation, per pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    .. math:: -\ln \sigma(r_w - r_l), \qquad
              r_i = \beta \ln \frac{\pi_\theta(y_i \mid x)}{\pi_{ref}(y_i \mid x)}

    w is the chosen response, l the rejected one; r is the implicit reward of a response (up to a
    term of the prompt only). What both responses share, such as the prompt's log-probabilities,
    cancels. ln 2 where policy and reference agree; linear in the margin :math:`r_w - r_l` where
    that is far below 0, so there is no overflow.

    Args:
        policy_chosen_log_probs, policy_rejected_log_probs: (B,), in nats, summed over the tokens of
            a response.
        ref_chosen_log_probs, ref_rejected_log_probs: (B,), likewise, under the reference; never
            differentiated.
        beta: how much a deviation from the reference weighs; finite and above 0.

    Returns:
        The loss (B,), and metadata of (B,) tensors without graph: `chosen_rewards` :math:`r_w`,
        `rejected_rewards` :math:`r_l` and `margins` :math:`r_w - r_l`, in nats; and bool, with ties
        as False, `accuracies` :math:`r_w > r_l` and `log_prob_accuracies`, whether the policy's own
        log-probability of the chosen response is above that of the rejected one.

    Raises:
        ValueError: shapes do not fit; beta is not finite and above 0.
    """
    require_positive(beta, "beta", "dpo_loss")
    _require_same_B(
        policy_chosen_log_probs=policy_chosen_log_probs,
        policy_rejected_log_probs=policy_rejected_log_probs,
        ref_chosen_log_probs=ref_chosen_log_probs,
        ref_rejected_log_probs=ref_rejected_log_probs,
    )
    # Policy minus reference first: the two are close, while chosen and rejected may differ by
    # hundreds of nats, and float32 would round that difference before the rest is subtracted.
    chosen_B = beta * (policy_chosen_log_probs - ref_chosen_log_probs.detach())
    rejected_B = beta * (policy_rejected_log_probs - ref_rejected_log_probs.detach())
    margins_B = chosen_B - rejected_B
    metadata = {
        "chosen_rewards": chosen_B,
        "rejected_rewards": rejected_B,
        "margins": margins_B,
        "accuracies": chosen_B > rejected_B,
        "log_prob_accuracies": policy_chosen_log_probs > policy_rejected_log_probs,
    }
    return -logsigmoid(margins_B), {name: values.detach() for name, values in metadata.items()}


def _require_same_B(**log_probs: Tensor) -> None:
    (first, reference), *others = log_probs.items()
    if reference.dim() != 1:
        raise ValueError(
            f"{first} must have shape (B,), one number per response, got "
            f"{tuple(reference.shape)}; sum log-probabilities of tokens with "
            "masked_normalize(log_probs, response_mask, 1.0, dim=1)"
        )
    for argument, tensor in others:
        require_same_shape(tensor, argument, reference, first)
