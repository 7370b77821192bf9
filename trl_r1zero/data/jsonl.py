"""Strict reading of JSON files: every row is right, or an error says where it is not.

The rows are lines of JSON, or the elements of one JSON array.

A `Row` knows where it came from, so that a task can ask for a field and the error text names the
file, the line and the field. Nothing is ever skipped.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.naming import unknown_name_message

__all__ = ["Row", "read_json", "read_jsonl"]

SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Row:
    """The fields of one row, and its place: `path:line`, or a data set and the row's number."""

    where: str
    fields: dict[str, Any]

    def text(self, field: str) -> str:
        """Returns a field that must be there and must be a string with more than white space."""
        if field not in self.fields:
            raise self.error(
                field, "nothing", "a non-empty string", "add it. " + self._names(field)
            )
        value = self.fields[field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(
                field, _shown(value), "a non-empty string", "correct or remove the row"
            )
        return value

    def optional_text(self, field: str) -> str | None:
        """Returns None for a field that is absent or null; any other must pass `text`."""
        return None if self.fields.get(field) is None else self.text(field)

    def error(self, field: str, got: str, expected: str, do: str) -> ValueError:
        """Returns the error for this row, to be raised by who asked for the field."""
        return ValueError(f"{self.where}: field {field!r}: got {got}, expected {expected}; {do}")

    def _names(self, field: str) -> str:
        return "The row's fields: " + unknown_name_message("field", field, self.fields)


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, plain or (named `*.gz`) compressed.

    Blank lines are fine at the end of the file and an error elsewhere.

    Raises (while iterating):
        FileNotFoundError: no such file.
        ValueError: a line that is not UTF-8, not JSON, or not a JSON object; a blank line before
            the end; a broken gzip file; a file without rows. The text begins with `path:line:`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a path to an existing JSON-lines file"
        )
    number = 0
    blank_line = None
    rows = 0
    try:
        # Bytes, not text: decoding line by line lets the error name the line.
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    blank_line = blank_line or number
                    continue
                if blank_line is not None:
                    raise ValueError(
                        f"{path}:{blank_line}: got a blank line before the last row, expected one "
                        "JSON object per line; remove the blank line"
                    )
                yield Row(where=f"{path}:{number}", fields=_parse_line(line, f"{path}:{number}"))
                rows += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}:{number + 1}: got a broken gzip file ({error}), expected a complete one; "
            "download or compress it again, or drop '.gz' from the name if it is plain text"
        ) from error
    if rows == 0:
        raise ValueError(f"{path}:1: got a file without rows, expected one JSON object per line")


def read_json(path: str | Path) -> Iterator[Row]:
    """Yields the elements of a file that holds a JSON array of objects; any other is read by
    `read_jsonl`.

    Raises (while iterating):
        ValueError: the array is not UTF-8 or not JSON, is empty, or has an element that is not an
            object; and as `read_jsonl`.
    """
    path = Path(path)
    content = path.read_bytes() if path.is_file() else b""
    if not content.lstrip().startswith(b"["):
        yield from read_jsonl(path)
        return
    try:
        elements = json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: got bytes that are not UTF-8 (at byte {error.start}), expected UTF-8 text; "
            "convert the file"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: got text that is not JSON ({error.msg} at column "
            f"{error.colno}), expected one array of objects; correct the file"
        ) from error
    if not elements:
        raise ValueError(f"{path}: got an array without elements, expected one object per row")
    for number, element in enumerate(elements):
        where = f"{path}[{number}]"
        if not isinstance(element, dict):
            raise ValueError(
                f"{where}: got a JSON {type(element).__name__}, expected an object; correct it"
            )
        yield Row(where=where, fields=element)


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: got bytes that are not UTF-8 (at byte {error.start} of the line), expected "
            "UTF-8 text; convert the file"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: got text that is not JSON ({error.msg} at column {error.colno}), expected "
            "one JSON object on one line; correct the line"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: got a JSON {type(value).__name__}, expected one JSON object per line; write "
            "each element of an array on a line of its own"
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return f"{shown} ({type(value).__name__})"
