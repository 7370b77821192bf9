"""The DPO loss of instructions with a chosen and a rejected response.

Shapes: B pairs, so 2B sequences, the chosen responses first; L tokens in the longest sequence,
T = L - 1.

Prompt, response and end-of-text token are tokenised as *one* text, as documents of instruction
tuning are, and as the reference of CS336 (assignment 5, supplement) does; `data.tokenization`, on
the other hand, tokenises prompt and response apart. The two differ where a token spans the border:
where a response begins with a line break, which many byte-level tokenizers join with the one
that ends the template.

The reference sums log-probabilities over all tokens of both sequences. Here only those tokens count
that follow the beginning which the ids of the prompt, of the chosen and of the rejected text have
in common: almost always the responses; where a token spans the border, the end of the prompt too,
in both sequences. What is left out has the same log-probability in both, so it cancels: loss and
gradient are those of the sums over all tokens, without the rounding of a long sum and, where
dropout is on, without its noise. (With a mask by the number of the prompt's own tokens, a token
across the border in one of the sequences would be missing from that one only.)
"""

from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trl_r1zero.data.prompts import format_alpaca
from trl_r1zero.functional import dpo_loss, get_response_log_probs, masked_normalize

from .epochs import PairMicroBatch, PairRow, make_pair_microbatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compute_per_instance_dpo_loss(
    lm: torch.nn.Module,
    lm_ref: torch.nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
) -> Tensor:
    r"""The DPO loss of one pair, for a model to be trained and its reference.

    .. math:: -\ln \sigma\Bigl(\beta \ln \frac{\pi_\theta(y_w \mid x)}{\pi_{ref}(y_w \mid x)}
              - \beta \ln \frac{\pi_\theta(y_l \mid x)}{\pi_{ref}(y_l \mid x)}\Bigr)

    x is the prompt in the Alpaca template, y_w the chosen and y_l the rejected response, each with
    the end-of-text token behind it (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). The module's
    docstring says how they are tokenised, and why the value is that of the sums over all tokens.

    Args:
        lm: a causal LM, as transformers has them; gets gradients. Its mode (train or eval) is the
            caller's.
        lm_ref: another one for the same token ids, or `lm` itself; never gets gradients. May be on
            another device. Should be in eval mode.
        tokenizer: a transformers tokenizer with an end-of-text token; needs no pad token.
        beta: how much a deviation from the reference weighs; finite and above 0.
        prompt: the instruction, without the template.
        response_chosen: the response that is preferred.
        response_rejected: the other one.

    Returns:
        A scalar in nats on the device of `lm`, with graph.

    Raises:
        ValueError: beta is not above 0; the tokenizer has no end-of-text token, or appends special
            tokens itself.
    """
    pair = encode_pair(prompt, response_chosen, response_rejected, tokenizer)
    # Rows are padded on the right, where a causal model does not look, so any id will do.
    batch = make_pair_microbatch([pair], tokenizer.eos_token_id)
    policy_1, policy_rejected_1 = pair_log_probs(lm, batch)
    with torch.no_grad():
        ref_1, ref_rejected_1 = pair_log_probs(lm_ref, batch)
    device = policy_1.device
    reference = ref_1.to(device), ref_rejected_1.to(device)
    return dpo_loss(policy_1, policy_rejected_1, *reference, beta)[0].squeeze(0)


def encode_pair(
    prompt: str, chosen: str, rejected: str, tokenizer: "PreTrainedTokenizerBase"
) -> PairRow:
    """A pair in the Alpaca template, tokenised as the module's docstring says; a ValueError if the
    tokenizer has no end-of-text token, or appends special tokens itself."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "got a tokenizer whose eos_token_id is None, expected one that can end a response; set "
            "tokenizer.eos_token"
        )
    template_ids = _encode(format_alpaca(prompt), tokenizer)
    chosen_ids, rejected_ids = (
        [*_encode(format_alpaca(prompt, response), tokenizer), tokenizer.eos_token_id]
        for response in (chosen, rejected)
    )
    columns = zip(template_ids, chosen_ids, rejected_ids, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return PairRow(chosen_ids[:shared], chosen_ids[shared:], rejected_ids[shared:])


def pair_log_probs(model: torch.nn.Module, batch: PairMicroBatch) -> tuple[Tensor, Tensor]:
    """`sum_over_responses` of pairs, on any device, under a causal LM, on its device."""
    batch = batch.to(next(model.parameters()).device)
    log_probs_BT = get_response_log_probs(model, batch.input_ids, batch.labels)["log_probs"]
    return sum_over_responses(log_probs_BT, batch.response_mask)


def sum_over_responses(log_probs: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities (B,) of the chosen and of the rejected responses, in nats: sums over
    the tokens (2B, T) that the mask, on any device, marks; the chosen sequences first."""
    sums_2B = masked_normalize(log_probs, response_mask.to(log_probs.device), 1.0, dim=1)
    chosen_B, rejected_B = sums_2B.chunk(2)
    return chosen_B, rejected_B


def _encode(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids with the tokenizer's own begin token, if it has one; nothing behind the text."""
    ids = tokenizer(text)["input_ids"]
    plain_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids[len(ids) - len(plain_ids) :] != plain_ids:
        raise ValueError(
            f"got a tokenizer that appends special tokens ({ids[-1]}) after a text, expected one "
            "that adds them only at the beginning; the end-of-text token is added here"
        )
    return ids
