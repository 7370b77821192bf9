"""Strict reading of files of rows: every row is right, or an error says where it is not.

The rows are lines of JSON, the elements of one JSON array, or the records of a CSV file. A `Row`
knows where it came from, so that a task can ask for a field and the error text names the file, the
line and the field (see `bad_rows` for what becomes of such a row). A file that cannot be parsed is
broken as a whole.
"""

import codecs
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.data.bad_rows import BadRowError

ONE_PER_LINE = "one JSON object per line"
ON_ITS_LINE = f"{ONE_PER_LINE}; write each element of an array on a line of its own"


@dataclass(frozen=True)
class Row:
    """The fields of one row, and its place: `path:line`, or a data set and the row's number."""

    where: str
    fields: dict[str, Any]

    def text(self, field: str) -> str:
        """Returns a field that must be there and must be a string with more than white space."""
        if field not in self.fields:
            names = unknown_name_message("field", field, self.fields)
            raise self.error(
                field, "nothing", "a non-empty string", f"add it. The row's fields: {names}"
            )
        value = self.fields[field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, describe(value), "a non-empty string")
        return value

    def answer(self, field: str) -> str:
        """As `text`; a number, as many files have it, is an answer too."""
        value = self.fields.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if number and math.isfinite(value or 0) else self.text(field)

    def optional_text(self, field: str) -> str | None:
        """Returns None for a field that is absent or null; any other must pass `text`."""
        return None if self.fields.get(field) is None else self.text(field)

    def error(
        self, field: str, got: str, expected: str, do: str = "correct or remove the row"
    ) -> BadRowError:
        """Returns the error for this row, to be raised by who asked for the field."""
        problem = f"field {field!r}: got {got}, expected {expected}; {do}"
        return BadRowError(self.where, problem, f"{field}: expected {expected}")


def describe(value: object) -> str:
    """Returns the value as Python writes it, shortened, and its type: `5 (int)`."""
    return f"{value!r:.80} ({type(value).__name__})"


def existing_file(path: str | Path, kind: str) -> Path:
    """Returns the path of a file that is there; `kind` is for the message. FileNotFoundError if
    there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give a path to an existing {kind} file")
    return Path(path)


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, plain or (named `*.gz`) compressed.

    Blank lines are none, and a byte order mark is not part of the first.

    Raises (while iterating):
        FileNotFoundError: no such file.
        ValueError: a line that is not UTF-8, not JSON, or not a JSON object; a broken gzip file; a
            file without rows. The text begins with `path:line:`.
    """
    path = existing_file(path, "JSON-lines")
    number = rows = 0
    try:
        # Bytes, not text: decoding line by line lets the error name the line.
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if text := line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").rstrip():
                    yield _row(_parse(text, path, number), f"{path}:{number}", ON_ITS_LINE)
                    rows += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}:{number + 1}: got a broken gzip file ({error}), expected a complete one; "
            "download or compress it again, or drop '.gz' from the name if it is plain text"
        ) from error
    if not rows:
        raise ValueError(f"{path}:1: got a file without rows, expected {ONE_PER_LINE}")


def read_json(path: str | Path) -> Iterator[Row]:
    """Yields the elements of a file that holds a JSON array of objects; any other file is read as
    by `read_jsonl`, whose errors are raised for an array, too."""
    path = Path(path)
    content = path.read_bytes() if path.is_file() else b""
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.lstrip().startswith(b"["):
        yield from read_jsonl(path)
        return
    elements = _parse(content, path)
    if not elements:
        raise ValueError(f"{path}: got an array without elements, expected one object per row")
    for number, element in enumerate(elements):
        yield _row(element, f"{path}[{number}]", "an object; correct it")


def read_csv(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yields the records of a CSV file in UTF-8, with or without a byte order mark; `columns` names
    those of a file without a header.

    All fields are strings. A record's place is `path:line` of its first line, for quoted fields
    may hold line breaks.

    Raises (while iterating):
        FileNotFoundError: no such file.
        ValueError: bytes that are not UTF-8, broken quotes, a record of another number of fields,
            two columns of one name, or a file without records. The text begins with `path:line:`.
    """
    path = existing_file(path, "CSV")
    empty = True
    for where, fields in _records(path):
        if columns is None:
            columns = fields
            if len(set(columns)) < len(columns):
                raise ValueError(
                    f"{where}: got {columns!r}, expected a header of different names of columns; "
                    "write one as the first line"
                )
            continue
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: got {len(fields)} fields ({fields!r:.80}), expected {len(columns)}: "
                f"{', '.join(columns)}; put a field with commas or line breaks into quotes"
            )
        empty = False
        yield Row(where, dict(zip(columns, fields, strict=True)))
    if empty:
        raise ValueError(f"{path}:1: got a file without records, expected one per line")


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    text = _decode(path.read_bytes(), path).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{where}: got a record that is no CSV ({error}); a quote inside a quoted field is "
                "written twice"
            ) from error
        if record is None:
            return
        if record:  # a blank line is none
            yield where, record


def _row(value: object, where: str, expected: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got a JSON {type(value).__name__}, expected {expected}")
    return Row(where, value)


def _parse(content: bytes, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(_decode(content, path, first_line))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{first_line + error.lineno - 1}: got text that is not JSON ({error.msg} at "
            f"column {error.colno}), expected JSON; correct the line"
        ) from error


def _decode(content: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        lines_before = content[: error.start].split(b"\n")
        raise ValueError(
            f"{path}:{first_line + len(lines_before) - 1}: got bytes that are not UTF-8 (at byte "
            f"{len(lines_before[-1])} of the line), expected UTF-8 text; convert the file"
        ) from error
