"""Rows that cannot be used (`on_bad_row`): one error that names them, or left out and counted.

A reader of rows gives each to `usable`, inside of a `with` of `reading`. What is wrong with a file
as a whole (a line that is not JSON, no rows, none that can be used) is an error in any case.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any, TypeVar

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.processes import is_main_process

logger = logging.getLogger(__name__)

ON_BAD_ROW = ("error", "skip")
MOST_SHOWN = 5  # rows of one kind in a message, and places in `facts`

T = TypeVar("T")
R = TypeVar("R")


class BadRowError(ValueError):
    """A row that cannot be used.

    Args:
        where: `path:line`, or a data set and the row's number.
        problem: what is wrong with this row.
        reason: a few words that are the same for all rows with this fault, to count them by.
    """

    def __init__(self, where: str, problem: str, reason: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem, self.reason = where, problem, reason
        self.number = 0  # of the row in its source, from 1, once it was counted

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.problem, self.reason)


class BadRowsError(ValueError):
    """Rows of a source cannot be used, and are not left out."""


class BadRows:
    """What was read of a source, and the rows of it that cannot be used."""

    def __init__(self, on_bad_row: str = "error", source: str = "the data") -> None:
        if on_bad_row not in ON_BAD_ROW:
            raise ValueError(unknown_name_message("on_bad_row", on_bad_row, ON_BAD_ROW))
        self.on_bad_row, self.source = on_bad_row, source  # the latter for messages
        self.read = 0  # rows so far, usable or not
        self.errors: list[BadRowError] = []  # one for each row that cannot be used

    def add(self, error: BadRowError) -> None:
        """Count a row that was read and cannot be used."""
        self.read += 1
        error.number = self.read
        self.errors.append(error)

    def facts(self) -> dict[str, Any]:
        """Numbers of rows, why they cannot be used, and the first places, as JSON can hold them."""
        return {
            "skipped": len(self.errors),
            "of": self.read,
            "reasons": dict(Counter(error.reason for error in self.errors)),
            "first": [error.where for error in self.errors[:MOST_SHOWN]],
        }

    def check(self) -> None:
        """Raise a BadRowsError if rows are bad and `on_bad_row` is `error`, or if all are."""
        if self.errors and (self.on_bad_row == "error" or len(self.errors) == self.read):
            raise BadRowsError(self._message())

    def finish(self) -> None:
        """`check`, and say how many rows are left out, once and on the main process alone."""
        self.check()
        if self.errors and is_main_process():
            logger.warning("%s: %s", self.source, skipped_in_words(self.facts()))

    def _message(self) -> str:
        number, lines = len(self.errors), []
        by_reason = sorted(self.errors, key=lambda error: error.reason)
        for _, group in groupby(by_reason, key=lambda error: error.reason):
            errors = list(group)
            lines += [f"  {error}" for error in errors[:MOST_SHOWN]]
            if (more := len(errors) - MOST_SHOWN) > 0:
                lines.append(f"  and {more:,} more such rows")
        head = f"{self.source}: none of {number:,} rows can be used:"
        if number < self.read:
            head = f"{self.source}: {number:,} of {self.read:,} rows cannot be used:"
            lines.append(f"on_bad_row: skip leaves {'it' if number == 1 else 'them'} out")
        return "\n".join([head, *lines])


def skipped_in_words(facts: dict[str, Any]) -> str:
    """`facts` of `BadRows` as a sentence."""
    reasons = "; ".join(f"{count:,} x {reason}" for reason, count in facts["reasons"].items())
    more = ", ..." if facts["skipped"] > len(facts["first"]) else ""
    return (
        f"left out {facts['skipped']:,} of {facts['of']:,} rows ({reasons}): "
        f"{', '.join(facts['first'])}{more}"
    )


_reading: ContextVar[BadRows | None] = ContextVar("reading", default=None)


@contextmanager
def reading(source: str, on_bad_row: str | BadRows) -> Iterator[BadRows]:
    """Collects the bad rows of what `usable` sees inside of the `with`, and then `finish`es.

    A `BadRows` in place of `error` or `skip` is the caller's, who counts on and finishes.
    """
    bad_rows = on_bad_row if isinstance(on_bad_row, BadRows) else BadRows(on_bad_row, source)
    token = _reading.set(bad_rows)
    try:
        yield bad_rows
    finally:
        _reading.reset(token)
    if bad_rows is not on_bad_row:
        bad_rows.finish()


def usable(convert: Callable[[R], T], rows: Iterable[R]) -> Iterator[T]:
    """Yields what `convert` makes of each row, without rows for which it raises a BadRowError.
    Outside of a `with` of `reading`, the first such error is raised."""
    bad_rows = _reading.get()
    for row in rows:
        try:
            made = convert(row)
        except BadRowError as error:
            if bad_rows is None:
                raise
            bad_rows.add(error)
        else:
            if bad_rows is not None:
                bad_rows.read += 1
            yield made
