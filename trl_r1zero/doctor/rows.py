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
Columns = dict[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Split:
    """Training or validation data, row by row; what rows do not have is empty."""

    name: str  # the recipe's key for it
    source: str | None = None  # None for what a task generates
    prompts: Sequence[str] = ()
    responses: Sequence[str] = ()
    truths: Sequence[Any] = ()
    lines: Sequence[int] = ()  # the number of each row in its source, from 1
    # Line of each row that cannot be used, at which a run would stop -> what is wrong with it.
    bad: Mapping[int, str] = field(default_factory=dict)
    error: str = ""  # why there are no rows
    prompt_tokens: Sequence[int] = ()
    total_tokens: Sequence[int] = ()  # of prompt and response


def read_split(name: str, source: str | None, load: Load, columns: Columns) -> Split:
    """Read all rows that can be used.

    `load` raises an error that begins with `path:line:` at the first row that is wrong; the row is
    taken out, and the rest is read again. `columns` gives the value of each column for a row.
    """
    rows: Sequence[Any] = ()
    bad: dict[int, str] = {}
    path = Path(source or "").expanduser()
    json_lines = path.suffix == ".jsonl" and path.is_file() and path.stat().st_size <= _MOST_BYTES
    lines = path.read_bytes().splitlines(keepends=True) if json_lines else []
    numbers = list(range(1, len(lines) + 1))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        while True:
            try:
                rows, error = load(str(copy) if bad else source), ""
                break
            except Exception as reason:  # also what the hub's libraries raise
                error = str(reason).strip() or type(reason).__name__
                error = error.replace(str(copy), str(path))
            match = re.match(rf"{re.escape(str(path))}:(\d+):\s*(.*)", error)
            if match is None or not json_lines or len(bad) == MOST_BAD_ROWS:
                break
            number = numbers.pop(int(match[1]) - 1)
            bad[number] = match[2]
            if not numbers:
                error = f"{path}: none of the rows can be used"
                break
            copy.write_bytes(b"".join(lines[number - 1] for number in numbers))
    values = {column: [value(row) for row in rows] for column, value in columns.items()}
    numbers = numbers if bad else list(range(1, len(rows) + 1))
    return Split(name, source, lines=numbers, bad=bad, error=error, **values)
