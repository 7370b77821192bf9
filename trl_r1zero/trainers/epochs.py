"""Training for epochs over a fixed set of rows, which each update takes a train batch of."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset

from .epoch_configs import EpochSettings
from .microbatches import PaddedRows

logger = logging.getLogger(__name__)

T = TypeVar("T")


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


R = TypeVar("R", TrainRow, PairRow)


# Train batches


def num_updates(num_rows: int, args: EpochSettings) -> int:
    """Optimizer updates of all epochs."""
    return int(args.num_train_epochs) * -(-num_rows // args.train_batch_size)


def train_batches(rows: Sequence[T], args: Any, started_at: int) -> Iterator[list[T]]:
    """The train batches of all epochs, from update number `started_at` on."""
    batches = (
        batch
        for epoch in range(int(args.num_train_epochs))
        for batch in epoch_batches(
            rows, args.train_batch_size, shuffle=bool(args.shuffle_dataset), seed=(args.seed, epoch)
        )
    )
    return islice(batches, started_at, None)


def batch_loader(iterate: Callable[[], Iterator[list[Any]]]) -> DataLoader:
    """Yields what `iterate` does, as transformers' loop takes it: on each process, all of it."""
    # A generator of its own: the loader would take a number from torch's, so that a resumed run
    # would not have the dropout of an uninterrupted one.
    return DataLoader(
        _Batches(iterate), batch_size=None, collate_fn=_as_it_is, generator=Generator()
    )


def out_of_loss(row: R) -> R:
    """A copy that is not in the loss, to fill up a process's micro-batches."""
    return replace(row, in_loss=False)


def epoch_batches(
    rows: Sequence[T], batch_size: int, *, shuffle: bool, seed: Sequence[int]
) -> Iterator[list[T]]:
    """The train batches of one epoch, over all processes; the last one may be short. Shuffled, they
    are in the order that the numbers of `seed` name."""
    order: Sequence[int] = range(len(rows))
    if shuffle:
        order = np.random.default_rng(list(seed)).permutation(len(rows)).tolist()
    for start in range(0, len(rows), batch_size):
        yield [rows[number] for number in order[start : start + batch_size]]


def without_overlong(
    rows: Sequence[T], lengths: Sequence[int], max_length: int | None, overlong: str
) -> list[T]:
    """The rows of at most `max_length` tokens (None: any number), which may be all; how many are
    left out is logged. A ValueError if one is too long and `overlong` is `error`, not `drop`, or if
    all are."""
    long = [n for n, length in enumerate(lengths) if max_length is not None and length > max_length]
    if not long:
        return list(rows)
    message = (
        f"{len(long)} of {len(rows)} rows are longer than max_length ({max_length} tokens), the "
        f"first is row {long[0]} with {lengths[long[0]]}"
    )
    if overlong == "error":
        raise ValueError(f"{message}; raise max_length, or set overlong to drop")
    if len(long) == len(rows):
        raise ValueError(f"{message}: none is left; raise max_length")
    logger.warning("%s; they are left out", message)
    too_long = set(long)
    return [row for number, row in enumerate(rows) if number not in too_long]


class _Batches(IterableDataset):
    """What a function that makes iterators yields, as transformers' loop takes it."""

    def __init__(self, iterate: Callable[[], Iterator[list[Any]]]) -> None:
        self._iterate = iterate

    def __iter__(self) -> Iterator[list[Any]]:
        return self._iterate()


def _as_it_is(batch: T) -> T:
    return batch
