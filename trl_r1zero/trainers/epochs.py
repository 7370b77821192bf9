"""Training for epochs over a fixed set of rows, which each update takes a train batch of."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from .base_config import EpochSettings
from .microbatches import Row as SizedRow

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Row(SizedRow, Protocol):
    """What a train batch is made of: a dataclass."""

    @property
    def in_loss(self) -> bool:
        """False for a row that only fills up a process's micro-batches."""


R = TypeVar("R", bound=Row)


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
    copy: Any = row
    return dataclasses.replace(copy, in_loss=False)


def epoch_batches(
    rows: Sequence[T], batch_size: int, *, shuffle: bool, seed: Sequence[int]
) -> Iterator[list[T]]:
    """The train batches of one epoch; the last one may be short.

    Args:
        rows: The training set.
        batch_size: Rows of a train batch, over all processes.
        shuffle: Whether to shuffle; otherwise the order of the rows.
        seed: Numbers that name this epoch's order.
    """
    order: Sequence[int] = range(len(rows))
    if shuffle:
        order = np.random.default_rng(list(seed)).permutation(len(rows)).tolist()
    for start in range(0, len(rows), batch_size):
        yield [rows[number] for number in order[start : start + batch_size]]


def without_overlong(
    rows: Sequence[T], lengths: Sequence[int], max_length: int | None, overlong: str
) -> list[T]:
    """The rows of at most `max_length` tokens, which may be all; how many are left out is logged.

    Args:
        rows: The rows.
        lengths: Tokens of each.
        max_length: None for any number.
        overlong: `drop` or `error`.

    Raises:
        ValueError: A row is too long and `overlong` is `error`, or all are.
    """
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
