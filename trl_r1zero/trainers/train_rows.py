"""Rows of supervised fine-tuning: a prompt and the response that is learned.

Shapes: B rows of a micro-batch, T its longest row minus one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trl_r1zero.data.tokenization import pad_and_shift

from .microbatches import PaddedRows


@dataclass(frozen=True)
class TrainRow:
    """The tokens of a row, without padding."""

    prompt_ids: list[int]
    response_ids: list[int]
    in_loss: bool = True  # False for a row that only fills up a process's micro-batches

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class SFTMicroBatch(PaddedRows):
    """Tensors of some rows."""

    # Rows of the train batch over all processes, divided by the number of processes: with this
    # denominator the mean over processes is the loss.
    num_sequences: float


def make_sft_microbatch(
    rows: Sequence[TrainRow], *, pad_token_id: int, device: torch.device, num_sequences: float
) -> SFTMicroBatch:
    """Tensors of some rows, padded to their own longest."""
    tensors = pad_and_shift(
        [row.prompt_ids for row in rows], [row.response_ids for row in rows], pad_token_id
    )
    in_loss_B1 = torch.tensor([[row.in_loss] for row in rows])
    return SFTMicroBatch(
        input_ids=tensors["input_ids"].to(device),
        labels=tensors["labels"].to(device),
        response_mask=(tensors["response_mask"] & in_loss_B1).to(device),
        lengths=[row.num_tokens - 1 for row in rows],
        num_sequences=num_sequences,
    )
