"""Training for epochs over a fixed set of rows, which each update takes a train batch of."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from .base_config import StrictConfig, knob
from .microbatches import Row as SizedRow

logger = logging.getLogger(__name__)

T = TypeVar("T")
OVERLONG = ("drop", "error")


class Row(SizedRow, Protocol):
    """What a train batch is made of: a dataclass."""

    @property
    def in_loss(self) -> bool:
        """False for a row that only fills up a process's micro-batches."""


R = TypeVar("R", bound=Row)


@dataclass
class EpochSettings(StrictConfig):
    """Batches, epochs and lengths of a fixed set of rows."""

    num_train_epochs: float = knob(1, "Passes over the rows, a whole number.")
    train_batch_size: int = knob(32, "Rows per optimizer update, over all processes.")
    max_length: int | None = knob(1024, "Tokens of prompt and response at most. null: any number.")
    overlong: str = knob(
        "drop",
        "What becomes of rows above max_length, which are never cut: drop (and say how many), or "
        "error.",
    )
    shuffle_dataset: bool = knob(True, "Shuffle the rows, anew for each epoch, by seed.")
    save_every: int | None = knob(
        100, "Checkpoint every so many optimizer updates and at the end. null: never."
    )

    def check_rows(self) -> None:
        """Raise a ValueError for batch sizes or lengths that cannot work."""
        self._require_at_least(1, "train_batch_size", "save_every", "max_length")
        self._check_train_batch(self.train_batch_size)
        if self.overlong not in OVERLONG:
            raise ValueError(
                f"overlong must be one of {', '.join(OVERLONG)}, got {self.overlong!r}"
            )

    def check_epochs(self) -> None:
        """Raise a ValueError unless the number of epochs is whole."""
        epochs = self.num_train_epochs
        if epochs is None or not epochs >= 1 or not float(epochs).is_integer():
            raise ValueError(f"num_train_epochs must be 1, 2, 3 ..., got {epochs}")

    def _derived_values(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": self.train_batch_share,
            "max_steps": -1,  # the trainer knows, once it has the rows
            "save_strategy": "no" if self.save_every is None else "steps",
            "save_steps": 500 if self.save_every is None else self.save_every,
        }


def num_updates(num_rows: int, args: EpochSettings) -> int:
    """Optimizer updates of all epochs."""
    return int(args.num_train_epochs) * -(-num_rows // args.train_batch_size)


def train_batches(rows: Sequence[T], args: Any, started_at: int) -> Iterator[list[T]]:
    """The train batches of all epochs, from update number `started_at` on."""
    batches = (
        batch
        for epoch in range(int(args.num_train_epochs))
        for batch in epoch_batches(
            rows,
            args.train_batch_size,
            shuffle=bool(args.shuffle_dataset),
            seed=(args.seed, epoch),
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
        overlong: A member of `OVERLONG`.

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
