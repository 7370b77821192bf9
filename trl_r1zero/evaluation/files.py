"""Files that survive a kill, and what tells one piece of work from another."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from trl_r1zero.common.folder_lock import FolderInUseError, holding


def json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def json_text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def valid_json(value: Any) -> Any:
    """The same, with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: valid_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON, which is the file's last one though the line before was cut off."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                whole_lines(file)
        file.write(json_line(row))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is never seen half: the old one is there until the new one is whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; a ValueError that names the file and the line if it is none."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(
            f"{path}{line}: got text that is not JSON ({error}); restore the file, or remove it"
        ) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content; it is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(file: IO[bytes]) -> list[bytes]:
    """The lines of a file that is open for appending; a last one that a kill cut off is removed."""
    file.seek(0)
    content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        file.truncate(complete)
    return content[:complete].splitlines()


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two nested dicts of JSON, by key: `a.b: 1 there, 2 here`."""
    old, new = _flat(there), _flat(here)
    return [
        f"{key}: {old.get(key, 'nothing')!r} there, {new.get(key, 'nothing')!r} here"
        for key in dict.fromkeys([*old, *new])
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def _flat(facts: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(facts, Mapping) or not facts:
        return {name: facts}
    return {
        key: value
        for own, inner in facts.items()
        for key, value in _flat(inner, f"{name}.{own}" if name else own).items()
    }


# Folders whose rows survive a kill

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
REPORT_FILES = ("report.md", "report.html")
RESULT_COLUMNS = ("prompt", "response", "ground_truth", "length", "truncated")

# Example, completion, and for judgments of a pair whose output is shown first.
RowKey = tuple[int, int, str]

# Facts that may change when the work goes on.
_BOOKKEEPING = ("url", "started", "seconds")
_SAVE_SECONDS_EVERY = 1.0


class ResultsFolderError(ValueError):
    """The folder cannot be written into, or does not hold what it should."""


class RowsFolder:
    """Rows of one piece of work on disk, `num_rows` when all is done; a context manager. Its
    `identity` is JSON; `url` is where the work is done, if elsewhere, and may change.

    Raises:
        ResultsFolderError: The folder holds other work, or files that would be overwritten. On
            entering: another process uses it, or a line is not a row.
    """

    facts_file: ClassVar[str]
    files: ClassVar[Sequence[str]]  # of the rows, of the summary, others
    columns: ClassVar[Sequence[str]]  # that a row must have
    other, row_name, elsewhere = "", "", ""  # parts of messages

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], num_rows: int, **url: str
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / self.files[0]
        self.num_rows = num_rows
        self.rows: dict[RowKey, dict[str, Any]] = {}  # those that are there
        try:
            identity = json.loads(json.dumps(identity, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ResultsFolderError(
                f"settings cannot be written as JSON ({error}); convert the value, or leave it out"
            ) from error
        self.facts = {**identity, **url, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._file: IO[bytes] | None = None
        self._held = ExitStack()
        facts_path = self.folder / self.facts_file
        if facts_path.is_file():
            facts = read_json(facts_path)
            there = {key: value for key, value in facts.items() if key not in _BOOKKEEPING}
            if differences := differing(there, identity):
                raise ResultsFolderError(
                    "\n  ".join([f"{self.folder} holds {self.other} in", *differences])
                    + f"\n{self.elsewhere.capitalize()}, or delete this folder to start anew, or "
                    f"go on with the settings in its {self.facts_file}."
                )
            self.facts |= {key: facts[key] for key in ("started", "seconds") if key in facts}
        elif present := [name for name in self.files if (self.folder / name).exists()]:
            raise ResultsFolderError(
                f"{self.folder} has {', '.join(present)} but no {self.facts_file}, so nothing "
                f"could go on there; {self.elsewhere}, or move them away"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                stack.enter_context(holding(self.folder))
            except FolderInUseError as error:
                raise ResultsFolderError(str(error)) from None
            if not (self.folder / self.facts_file).exists():
                self.save_facts()  # before there are rows
            self._file = stack.enter_context(self.path.open("a+b"))
            lines = whole_lines(self._file)
            self.rows = parse_rows(lines, self.path, self.row_name, self.columns)
            self.save_facts()
            self._held = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with self._held:
            self.save_facts()
        if error is not None and self.rows:
            error.add_note(
                f"{len(self.rows)} of {self.num_rows} {self.row_name}s are in {self.path}; the "
                "same command goes on from there"
            )

    def add(self, row: dict[str, Any]) -> None:
        """Write a row at once, so that nothing that was computed or paid for is lost."""
        assert self._file is not None
        self.rows[row_key(row)] = row
        self._file.write(json_line(row))
        self._file.flush()

    def finish(self, rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        """Put the rows in order, and the summary beside them."""
        write_atomically(self.path, b"".join(map(json_line, rows)))
        write_atomically(self.folder / self.files[1], json_text(summary))

    def save_facts(self) -> None:
        write_atomically(self.folder / self.facts_file, json_text(self.facts))


class Stopwatch:
    """Seconds spent inside of `with` blocks, `before` the first."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._started = before, math.nan

    @property
    def seconds(self) -> float:
        running = time.perf_counter() - self._started
        return self._before if math.isnan(running) else self._before + running

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        self._before, self._started = self.seconds, math.nan


class ResultsFolder(RowsFolder):
    """Rows of `GradedCompletion`; `clock` counts the seconds of the facts, over all restarts."""

    facts_file = EVALUATION_FILE
    files = (RESULTS_FILE, SUMMARY_FILE, *REPORT_FILES)
    columns = RESULT_COLUMNS
    other = "another evaluation, which differs"
    row_name = "graded completion"
    elsewhere = "choose another folder"

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], num_rows: int) -> None:
        super().__init__(folder, identity, num_rows)
        self.clock = Stopwatch(self.facts.get("seconds", 0.0))
        self._saved_at = -_SAVE_SECONDS_EVERY

    def add(self, row: dict[str, Any]) -> None:
        super().add(row)
        if time.monotonic() - self._saved_at > _SAVE_SECONDS_EVERY:
            self.save_facts()

    def save_facts(self) -> None:
        self.facts["seconds"] = round(self.clock.seconds, 3)
        super().save_facts()
        self._saved_at = time.monotonic()


def row_key(row: Mapping[str, Any]) -> RowKey:
    return row["example"], row["completion"], row.get("first", "")


def parse_rows(
    lines: Iterable[bytes], path: Path, row_name: str, columns: Sequence[str]
) -> dict[RowKey, dict[str, Any]]:
    """The rows in JSON lines, of two with the same key the first; ResultsFolderError for a line
    that is not a row with these columns."""
    rows: dict[RowKey, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if absent := [name for name in columns if name not in row]:
                raise KeyError(*absent)
            rows.setdefault(row_key(row), row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResultsFolderError(
                f"{path}:{number}: got {line[:80]!r}, expected one {row_name}; remove the line, "
                "and the same command makes it again"
            ) from error
    return rows
