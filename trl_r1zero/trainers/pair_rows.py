"""Rows of preference training: two sequences with a common beginning, one of which is preferred.

Shapes: B pairs of a micro-batch, so 2B sequences, the chosen ones first; T the longest sequence
minus one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift

from .microbatches import PaddedRows


@dataclass(frozen=True)
class PairRow:
    """A pair without padding: its tokens (see `encode_pair`), and the responses' log-probabilities
    under the reference, in nats, where they are known beforehand."""

    shared_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen: float | None = None
    ref_rejected: float | None = None
    in_loss: bool = True  # False for a row that only fills up a process's micro-batches

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
    """Tensors of some pairs: 2B rows."""

    ref_log_probs: Tensor | None  # (2B,) of the responses under the reference, in nats, if known
    in_loss: Tensor  # (B,) bool

    def to(self, device: torch.device) -> "PairMicroBatch":
        """The same on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def make_pair_microbatch(
    rows: Sequence[PairRow], *, pad_token_id: int, device: torch.device
) -> PairMicroBatch:
    """Tensors of some pairs, padded to their own longest sequence."""
    responses = [row.chosen_ids for row in rows] + [row.rejected_ids for row in rows]
    shared = [row.shared_ids for row in rows] * 2
    ref = [row.ref_chosen for row in rows] + [row.ref_rejected for row in rows]
    return PairMicroBatch(
        **pad_and_shift(shared, responses, pad_token_id),
        lengths=[len(a) + len(b) - 1 for a, b in zip(shared, responses, strict=True)],
        ref_log_probs=None if None in ref else torch.tensor(ref),
        in_loss=torch.tensor([row.in_loss for row in rows]),
    ).to(device)
