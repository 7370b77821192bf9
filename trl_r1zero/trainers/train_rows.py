"""Rows that are trained on for epochs: a prompt and a response, or a pair of responses.

Shapes: B rows or pairs of a micro-batch, T the longest sequence minus one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .microbatches import PaddedRows


@dataclass(frozen=True)
class TrainRow:
    """A prompt and the response that is learned: tokens without padding."""

    prompt_ids: list[int]
    response_ids: list[int]
    in_loss: bool = True  # False for a row that only fills up a process's micro-batches

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def make_sft_microbatch(rows: Sequence[TrainRow], pad_token_id: int) -> PaddedRows:
    """Tensors of some rows, on the CPU, padded to their own longest."""
    prompts, responses = [row.prompt_ids for row in rows], [row.response_ids for row in rows]
    padded = PaddedRows.of(prompts, responses, pad_token_id)
    padded.response_mask &= torch.tensor([[row.in_loss] for row in rows])
    return padded


@dataclass(frozen=True)
class PairRow:
    """Two sequences with a common beginning, of which one is preferred: tokens without padding (see
    `encode_pair`), and the responses' log-probabilities under the reference, in nats, where they
    are known beforehand."""

    shared_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen: float | None = None
    ref_rejected: float | None = None
    in_loss: bool = True

    @property
    def prompt_ids(self) -> list[int]:
        """Of either sequence."""
        return self.shared_ids

    @property
    def num_tokens(self) -> int:
        """Of both sequences."""
        return 2 * len(self.shared_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.shared_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass
class PairMicroBatch(PaddedRows):
    """Tensors of some pairs: 2B rows, the chosen ones first."""

    ref_log_probs: Tensor | None  # (2B,) of the responses under the reference, in nats, if known
    in_loss: Tensor  # (B,) bool


def make_pair_microbatch(rows: Sequence[PairRow], pad_token_id: int) -> PairMicroBatch:
    """Tensors of some pairs, on the CPU, padded to their own longest sequence."""
    responses = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
    ref = [row.ref_chosen for row in rows] + [row.ref_rejected for row in rows]
    return PairMicroBatch.of(
        [row.shared_ids for row in rows] * 2,
        responses,
        pad_token_id,
        ref_log_probs=None if None in ref else torch.tensor(ref),
        in_loss=torch.tensor([row.in_loss for row in rows]),
    )
