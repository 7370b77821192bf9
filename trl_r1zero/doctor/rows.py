"""The rows of a file, with those that cannot be used by their numbers, not by a traceback."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

# A file with more broken rows than this is broken as a whole.
MOST_BAD_ROWS = 20
_MOST_BYTES = 200 * 2**20


@dataclass(frozen=True)
class BadRow:
    """A row that a run would stop at: its line, from 1, and what is wrong with it."""

    line: int
    message: str


@dataclass(frozen=True)
class ReadRows(Generic[T]):
    """What a source gives.

    Attributes:
        source: The file, folder or hub id; None for what a task generates.
        rows: Those that can be used.
        bad: The others.
        error: Why there is none at all; empty if there are.
    """

    source: str | None
    rows: Sequence[T]
    bad: tuple[BadRow, ...] = ()
    error: str = ""


def read_rows(load: Callable[[str | None], Sequence[T]], source: str | None) -> ReadRows[T]:
    """Read all rows that can be used.

    The readers stop at the first row that is wrong and name its line; here the row is taken out,
    and the rest is read again.

    Args:
        load: Reads a source; raises a ValueError that begins with `path:line:` for a wrong row.
        source: What it reads.
    """
    try:
        return ReadRows(source, load(source))
    except Exception as error:  # also what the hub's libraries raise
        first = error
    path = Path(source).expanduser() if source else None
    lines_wanted = path is not None and path.is_file() and path.suffix == ".jsonl"
    if path is None or not lines_wanted or path.stat().st_size > _MOST_BYTES:
        return ReadRows(source, [], error=_message(first))
    return _without_bad_rows(load, path, first)


def _without_bad_rows(
    load: Callable[[str | None], Sequence[T]], path: Path, error: Exception
) -> ReadRows[T]:
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = list(range(1, len(lines) + 1))
    bad: list[BadRow] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        at_fault = path
        while len(bad) < MOST_BAD_ROWS:
            match = re.match(rf"{re.escape(str(at_fault))}:(\d+):\s*(.*)", str(error), re.DOTALL)
            if match is None:
                break
            number = numbers.pop(int(match[1]) - 1)
            bad.append(BadRow(number, match[2].split("\n")[0]))
            copy.write_bytes(b"".join(lines[number - 1] for number in numbers))
            at_fault = copy
            try:
                return ReadRows(str(path), load(str(copy)), tuple(bad))
            except Exception as next_error:
                error = next_error
    message = _message(error).replace(str(at_fault), str(path))
    return ReadRows(str(path), [], tuple(bad), message)


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
