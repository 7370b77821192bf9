"""Rows of preference training: two sequences with a common beginning, one of which is preferred.

Shapes: B pairs of a micro-batch, so 2B sequences, the chosen ones first; T the longest sequence
minus one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift

from .microbatches import PaddedRows


@dataclass(frozen=True)
class PairRow:
    """A pair without padding.

    Attributes:
        shared_ids, chosen_ids, rejected_ids: Its tokens; see `encode_pair`.
        ref_chosen, ref_rejected: Log-probabilities of the responses under the reference, in nats;
            None where they are not known beforehand.
        in_loss: False for a row that only fills up a process's micro-batches.
    """

    shared_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen: float | None = None
    ref_rejected: float | None = None
    in_loss: bool = True

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
    """Tensors of some pairs: 2B rows.

    Attributes:
        ref_log_probs: (2B,) of the responses under the reference, in nats; None if not known.
        in_loss: (B,) bool.
    """

    ref_log_probs: Tensor | None
    in_loss: Tensor

    def to(self, device: torch.device) -> "PairMicroBatch":
        """The same on another device."""
        ref = self.ref_log_probs
        return PairMicroBatch(
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            response_mask=self.response_mask.to(device),
            lengths=self.lengths,
            ref_log_probs=None if ref is None else ref.to(device),
            in_loss=self.in_loss.to(device),
        )


def make_pair_microbatch(
    rows: Sequence[PairRow], *, pad_token_id: int, device: torch.device
) -> PairMicroBatch:
    """Tensors of some pairs, padded to their own longest sequence."""
    responses = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
    shared = [row.shared_ids for row in rows] * 2
    tensors = pad_and_shift(shared, responses, pad_token_id)
    ref = [row.ref_chosen for row in rows] + [row.ref_rejected for row in rows]
    return PairMicroBatch(
        input_ids=tensors["input_ids"].to(device),
        labels=tensors["labels"].to(device),
        response_mask=tensors["response_mask"].to(device),
        lengths=[len(a) + len(b) - 1 for a, b in zip(shared, responses, strict=True)],
        ref_log_probs=None if None in ref else torch.tensor(ref, device=device),
        in_loss=torch.tensor([row.in_loss for row in rows], device=device),
    )
