"""Losses on pairs of responses, of which one is preferred.

Shape legend: B pairs. All inputs are log-probabilities of whole responses, summed over their tokens
(`masked_normalize(log_probs, response_mask, 1.0, dim=1)`).
"""

import torch
from torch.nn.functional import logsigmoid

from trl_r1zero.functional._checks import require_positive, require_same_shape
from trl_r1zero.functional.policy_losses import LossAndMetadata


def dpo_loss(
    policy_chosen_log_probs: torch.Tensor,
    policy_rejected_log_probs: torch.Tensor,
    ref_chosen_log_probs: torch.Tensor,
    ref_rejected_log_probs: torch.Tensor,
    beta: float,
) -> LossAndMetadata:
    r"""Direct preference optimisation, per pair (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    .. math:: -\ln \sigma(r_w - r_l), \qquad
              r_i = \beta \ln \frac{\pi_\theta(y_i \mid x)}{\pi_{ref}(y_i \mid x)}

    w is the chosen response, l the rejected one; r is the implicit reward of a response (up to a
    term that depends on the prompt only). Log-probabilities that both responses share, such as
    those of the prompt, cancel. ln 2 where policy and reference agree; linear in the margin
    :math:`r_w - r_l` where that is far below 0, so there is no overflow.

    Args:
        policy_chosen_log_probs: (B,), in nats, summed over the tokens of a response.
        policy_rejected_log_probs: (B,), likewise.
        ref_chosen_log_probs: (B,), likewise, under the reference; never differentiated.
        ref_rejected_log_probs: (B,), likewise.
        beta: how much a deviation from the reference weighs; finite and above 0.

    Returns:
        The loss (B,), and metadata of (B,) tensors without graph:

        * `chosen_rewards`, `rejected_rewards`: :math:`r_w` and :math:`r_l`, in nats;
        * `margins`: :math:`r_w - r_l`;
        * `accuracies`: bool, :math:`r_w > r_l`;
        * `log_prob_accuracies`: bool, the policy's own log-probability of the chosen response is
          above that of the rejected one.

        Ties count as wrong in both.

    Raises:
        ValueError: shapes do not fit; beta is not finite and above 0.
    """
    require_positive(beta, "beta", "dpo_loss")
    if policy_chosen_log_probs.dim() != 1:
        raise ValueError(
            "policy_chosen_log_probs must have shape (B,), one number per response, got "
            f"{tuple(policy_chosen_log_probs.shape)}; sum log-probabilities of tokens with "
            "masked_normalize(log_probs, response_mask, 1.0, dim=1)"
        )
    for tensor, argument in (
        (policy_rejected_log_probs, "policy_rejected_log_probs"),
        (ref_chosen_log_probs, "ref_chosen_log_probs"),
        (ref_rejected_log_probs, "ref_rejected_log_probs"),
    ):
        require_same_shape(tensor, argument, policy_chosen_log_probs, "policy_chosen_log_probs")
    # Policy minus reference first: the two are close, while chosen and rejected may differ by
    # hundreds of nats, and float32 would round that difference before the rest is subtracted.
    chosen_rewards_B = beta * (policy_chosen_log_probs - ref_chosen_log_probs.detach())
    rejected_rewards_B = beta * (policy_rejected_log_probs - ref_rejected_log_probs.detach())
    margins_B = chosen_rewards_B - rejected_rewards_B
    metadata = {
        "chosen_rewards": chosen_rewards_B.detach(),
        "rejected_rewards": rejected_rewards_B.detach(),
        "margins": margins_B.detach(),
        "accuracies": chosen_rewards_B.detach() > rejected_rewards_B.detach(),
        "log_prob_accuracies": policy_chosen_log_probs.detach()
        > policy_rejected_log_probs.detach(),
    }
    return -logsigmoid(margins_B), metadata
