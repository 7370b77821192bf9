"""Strict reading of CSV files: every record is right, or an error says where it is not."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from trl_r1zero.data.jsonl import Row

__all__ = ["read_csv"]


def read_csv(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yields the records of a CSV file; all fields are strings.

    A record's place is `path:line` of its first line, for quoted fields may hold line breaks.

    Args:
        path: a file in UTF-8, with or without a byte order mark.
        columns: the names of the columns of a file without a header. None: the first record has
            them.

    Raises (while iterating):
        FileNotFoundError: no such file.
        ValueError: bytes that are not UTF-8, broken quotes, a record of another number of fields,
            two columns of one name, or a file without records. The text begins with `path:line:`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a path to an existing CSV file")
    records = _records(path)
    if columns is None:
        where, columns = next(records, (f"{path}:1", []))
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"{where}: got {columns!r}, expected a header of different names of columns; "
                "write one as the first line"
            )
    empty = True
    for where, fields in records:
        empty = False
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: got {len(fields)} fields ({fields!r:.80}), expected {len(columns)}: "
                f"{', '.join(columns)}; put a field with commas or line breaks into quotes"
            )
        yield Row(where=where, fields=dict(zip(columns, fields, strict=True)))
    if empty:
        raise ValueError(f"{path}:1: got a file without records, expected one per line")


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: got bytes that are not UTF-8, expected UTF-8 text; convert the file"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{where}: got a record that is no CSV ({error}); a quote inside a quoted field is "
                "written twice"
            ) from error
        if record:  # a blank line is none
            yield where, record
