"""Rows of supervised fine-tuning: a prompt and the response that is learned.

Shapes: B rows of a micro-batch, T its longest row minus one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift

from .rollouts import longest_first


@dataclass(frozen=True)
class TrainRow:
    """A row without padding.

    Attributes:
        prompt_ids, response_ids: Its tokens.
        in_loss: False for a row that only fills up a process's share of a short train batch.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    in_loss: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class SFTMicroBatch:
    """Padded tensors of some rows; see `pad_and_shift` for the convention.

    Attributes:
        input_ids, labels, response_mask: (B, T); the mask is 0 in rows that are not in the loss.
        num_sequences: Rows of the train batch over all processes, divided by the number of
            processes: the denominator with which the mean over processes is the loss.
    """

    input_ids: Tensor
    labels: Tensor
    response_mask: Tensor
    num_sequences: float


def cut_into_sft_microbatches(
    rows: Sequence[TrainRow],
    rows_per_microbatch: int,
    *,
    pad_token_id: int,
    device: torch.device,
    num_sequences: float,
) -> Iterator[SFTMicroBatch]:
    """Micro-batches of `longest_first`, each padded to its own longest row."""
    for part in longest_first(rows, rows_per_microbatch):
        tensors = pad_and_shift(
            [row.prompt_ids for row in part], [row.response_ids for row in part], pad_token_id
        )
        in_loss_B1 = torch.tensor([[row.in_loss] for row in part])
        yield SFTMicroBatch(
            input_ids=tensors["input_ids"].to(device),
            labels=tensors["labels"].to(device),
            response_mask=(tensors["response_mask"] & in_loss_B1).to(device),
            num_sequences=num_sequences,
        )
