"""The rows of a file, with those that cannot be used listed by line instead of raised."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A file with more broken rows than this is broken as a whole.
MOST_BAD_ROWS = 20
_MOST_BYTES = 200 * 2**20

Load = Callable[[str | None], Sequence[Any]]


@dataclass(frozen=True)
class Split:
    """Training or validation data.

    Attributes:
        name: The recipe's key for it.
        source: The file, folder or hub id; None for what a task generates.
        prompts: What the model reads, row by row.
        responses: What it is to say, where the rows say so; otherwise empty.
        truths: What answers are graded against, where the rows have it; otherwise empty.
        lines: The number of each row in its source, from 1.
        bad: Line of each row that cannot be used, at which a run would stop -> what is wrong.
        error: Why there are no rows; empty if there are.
        prompt_tokens, total_tokens: Of each row: of its prompt, and with its response; empty
            without a tokenizer.
    """

    name: str
    source: str | None = None
    prompts: Sequence[str] = ()
    responses: Sequence[str] = ()
    truths: Sequence[Any] = ()
    lines: Sequence[int] = ()
    bad: Mapping[int, str] = field(default_factory=dict)
    error: str = ""
    prompt_tokens: Sequence[int] = ()
    total_tokens: Sequence[int] = ()


def read_split(name: str, source: str | None, load: Load, **columns: Callable[[Any], Any]) -> Split:
    """Read all rows that can be used.

    The readers stop at the first row that is wrong and name its line; here the row is taken out,
    and the rest is read again.

    Args:
        name: The recipe's key.
        source: What is read.
        load: Reads a source; raises a ValueError that begins with `path:line:` for a wrong row.
        columns: `prompts`, `responses` or `truths` -> its value for a row.
    """
    path, lines = Path(source or "").expanduser(), None
    bad: dict[int, str] = {}
    rows: Sequence[Any] = ()
    error = ""
    try:
        rows = load(source)
    except Exception as first:  # also what the hub's libraries raise
        error = _message(first)
        json_lines = source is not None and path.suffix == ".jsonl" and path.is_file()
        if json_lines and path.stat().st_size <= _MOST_BYTES:
            rows, lines, bad, error = _without_bad_rows(load, path, first)
    values = {column: [value(row) for row in rows] for column, value in columns.items()}
    numbers = range(1, len(rows) + 1) if lines is None else lines
    return Split(name, source, lines=numbers, bad=bad, error=error, **values)


def _without_bad_rows(
    load: Load, path: Path, error: Exception
) -> tuple[Sequence[Any], list[int], dict[int, str], str]:
    """Rows, their lines, the bad ones' messages by line, and why there are no rows."""
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = list(range(1, len(lines) + 1))
    bad: dict[int, str] = {}
    at_fault = path
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        while len(bad) < MOST_BAD_ROWS:
            match = re.match(rf"{re.escape(str(at_fault))}:(\d+):\s*(.*)", str(error), re.DOTALL)
            if match is None:
                break
            number = numbers.pop(int(match[1]) - 1)
            bad[number] = match[2].split("\n")[0]
            if not numbers:
                return [], [], bad, f"{path}: none of the rows can be used"
            copy.write_bytes(b"".join(lines[number - 1] for number in numbers))
            at_fault = copy
            try:
                return load(str(copy)), numbers, bad, ""
            except Exception as next_error:
                error = next_error
    return [], [], bad, _message(error).replace(str(at_fault), str(path))


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
