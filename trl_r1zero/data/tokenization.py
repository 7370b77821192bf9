"""Prompt and output to shifted, right-padded id tensors with a mask on the output.

Shapes: B sequences, L tokens in the longest prompt + output, T = L - 1.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# So many tokens of a prompt say how the text of an output goes on from it.
CONTEXT_TOKENS = 4


def tokenize_prompt_and_output(
    prompt_strs: list[str], output_strs: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, torch.Tensor]:
    """Tokenises prompts and outputs separately, joins the ids, and returns next-token pairs.

    So no token spans the border: the mask is exact, and the ids equal those of a rollout. The
    prompt gets the tokenizer's own special tokens (such as a begin token); the output gets none, so
    an end-of-text token is trained only where `output_strs` spells it out.

    Args:
        prompt_strs: B prompts, already formatted.
        output_strs: B outputs; an empty one is allowed.
        tokenizer: a transformers tokenizer with a pad token.

    Returns:
        `input_ids`, `labels` (B, L-1) long, `response_mask` (B, L-1) bool, as `pad_and_shift`.

    Raises:
        ValueError: lists of unequal length, no rows at all, or a tokenizer without a pad token.

    Source: the handout's `tokenize_prompt_and_output`. Departure: a tokenizer that adds an *end*
    token to every text (T5 and its like do) is rejected, for it would stand between prompt and
    output.
    """
    if len(prompt_strs) != len(output_strs):
        raise ValueError(
            f"got {len(prompt_strs)} prompt_strs and {len(output_strs)} output_strs; "
            "give one output for each prompt"
        )
    if not prompt_strs:
        raise ValueError("got no rows; give at least one prompt and one output")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "got a tokenizer whose pad_token_id is None; set one first, for example "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    prompt_ids, output_ids = tokenize_separately(prompt_strs, output_strs, tokenizer)
    return pad_and_shift(prompt_ids, output_ids, tokenizer.pad_token_id)


def tokenize_separately(
    prompt_strs: list[str], output_strs: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the token ids of B >= 1 prompts and of B outputs, to be joined; a ValueError for a
    tokenizer that appends special tokens to a text."""
    prompt_ids = encode_prompts(prompt_strs, tokenizer)
    output_ids = tokenizer(output_strs, add_special_tokens=False)["input_ids"]

    # A tokenizer treats all texts alike, so the first row shows whether it appends something.
    plain_ids = tokenizer(prompt_strs[0], add_special_tokens=False)["input_ids"]
    if prompt_ids[0][len(prompt_ids[0]) - len(plain_ids) :] != plain_ids:
        raise ValueError(
            f"got a tokenizer that appends special tokens ({prompt_ids[0][-1]}) after the prompt; "
            "use one that adds special tokens only at the beginning"
        )
    return prompt_ids, output_ids


def encode_prompts(
    prompt_strs: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Returns the token ids of formatted prompts, with the tokenizer's own special tokens.

    A begin token that a prompt spells out, as many chat templates do, is there once, also where the
    tokenizer adds one of its own.
    """
    ids: list[list[int]] = tokenizer(list(prompt_strs))["input_ids"]
    twice = [tokenizer.bos_token_id] * 2
    return [row[1:] if None not in twice and row[:2] == twice else row for row in ids]


def decode_output(
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    skip_special_tokens: bool = False,
) -> str:
    """Returns the text of an output as it goes on from the prompt.

    So it keeps a space at its beginning where the tokenizer leaves out that of a text's first token
    (as SentencePiece's do). No spaces before punctuation are removed, whatever the tokenizer's
    settings say; vLLM does not do so either.
    """

    def decode(ids: list[int]) -> str:
        return str(
            tokenizer.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    context = list(prompt_ids[-CONTEXT_TOKENS:])
    before, whole = decode(context), decode([*context, *output_ids])
    return whole[len(before) :] if whole.startswith(before) else decode(list(output_ids))


def pad_and_shift(
    prompt_ids: Sequence[Sequence[int]], output_ids: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Joins each prompt with its output, pads on the right, and shifts by one.

    With `full = prompt + output + padding` of length L,

        input_ids = full[:-1]
        labels = full[1:]
        response_mask[t] = (labels[t] is an output token)

    so `labels[t]` is the token that a causal model predicts after reading `input_ids[: t + 1]`.

    Args:
        prompt_ids, output_ids: B lists of token ids. An empty output gives a mask row that is all
            False.
        pad_token_id: fills the right. It may equal a real token (often eos): the mask is made from
            lengths, so a real eos at the end of an output stays marked.

    Returns:
        `input_ids`, `labels` (B, L-1) long, `response_mask` (B, L-1) bool. The first token of a
        sequence is never a label, so an output after an *empty* prompt has one marked token fewer
        than its length.

    Raises:
        ValueError: lists of unequal length, no rows, no tokens at all, or a pad_token_id of None.
    """
    if len(prompt_ids) != len(output_ids):
        raise ValueError(
            f"got {len(prompt_ids)} prompt_ids and {len(output_ids)} output_ids; "
            "give one output for each prompt"
        )
    if pad_token_id is None:
        raise ValueError("got pad_token_id None; give the id of the tokenizer's pad token")
    lengths = [
        len(prompt) + len(output) for prompt, output in zip(prompt_ids, output_ids, strict=True)
    ]
    longest = max(lengths, default=0)
    if longest == 0:
        raise ValueError(
            f"got {len(lengths)} rows without a single token; give at least one non-empty prompt"
        )

    full_BL = torch.full((len(lengths), longest), pad_token_id, dtype=torch.long)
    is_output_BL = torch.zeros((len(lengths), longest), dtype=torch.bool)
    for row, (prompt, output) in enumerate(zip(prompt_ids, output_ids, strict=True)):
        full_BL[row, : lengths[row]] = torch.tensor([*prompt, *output], dtype=torch.long)
        is_output_BL[row, len(prompt) : lengths[row]] = True
    return {
        "input_ids": full_BL[:, :-1].contiguous(),
        "labels": full_BL[:, 1:].contiguous(),
        "response_mask": is_output_BL[:, 1:].contiguous(),
    }
