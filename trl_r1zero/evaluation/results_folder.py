"""The folder of an evaluation: what was evaluated, and rows that survive a kill.

`results.jsonl` grows by one line as soon as a completion is graded, in whatever order they end;
when all are there it is rewritten in the order of the examples. `evaluation.json` says what was
evaluated, when it was started and the seconds it has taken so far, over all restarts.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .metrics import GradedCompletion

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
REPORT_FILES = ("report.md", "report.html")

# Keys of evaluation.json that say nothing about what is evaluated.
_BOOKKEEPING = ("started", "seconds")
_SAVE_SECONDS_EVERY = 1.0
# File systems of clusters may come without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Stopwatch:
    """Seconds spent inside of `with` blocks, `seconds` before the first."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def __enter__(self) -> "Stopwatch":
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._before, self._started = self.seconds, None


class ResultsFolderError(ValueError):
    """The folder is not one that this evaluation can write into."""


class ResultsFolder:
    """Rows of one evaluation on disk; a context manager.

    Args:
        folder: Made where it does not exist.
        about: What identifies the evaluation, a dict that JSON can hold. It is compared with the
            one of an evaluation that the folder holds already.
        num_completions: Completions of each example.
        num_rows: Rows of the finished evaluation.

    Attributes:
        rows: The rows that are there, by `example * num_completions + completion`; `evaluate` puts
            in what it adds.
        clock: Seconds that the evaluation has taken so far; `evaluate` starts and stops it.
        started: When it was started first.

    Raises:
        ResultsFolderError: The folder holds another evaluation, or files that an evaluation would
            overwrite, or a line that is no row. On entering: another process is at work in it.
    """

    def __init__(
        self, folder: str | Path, about: dict[str, Any], *, num_completions: int, num_rows: int
    ) -> None:
        self.folder = Path(folder)
        try:
            self.about = json.loads(json.dumps(about, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ResultsFolderError(
                f"settings cannot be written as JSON ({error}); convert the value, or leave it out"
            ) from error
        self.num_completions = num_completions
        self.num_rows = num_rows
        self.rows: dict[int, GradedCompletion] = {}
        self.clock = Stopwatch()
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._seconds_saved_at = time.monotonic()
        self._file: IO[bytes] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / EVALUATION_FILE
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            self.started, self.clock = facts["started"], Stopwatch(facts["seconds"])
            self._require_same(facts)
        else:
            self._require_unused()
            self.save_about()

    @property
    def path(self) -> Path:
        return self.folder / RESULTS_FILE

    def __enter__(self) -> "ResultsFolder":
        self._file = self.path.open("a+b")
        try:
            self._lock(self._file)
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        self.save_about()
        if error is not None and self.rows:
            error.add_note(
                f"{len(self.rows)} of {self.num_rows} graded completions are in {self.path}; the "
                "same evaluation with the same folder goes on from there"
            )

    def add(self, graded: GradedCompletion) -> None:
        """Write a row."""
        assert self._file is not None
        self._file.write(_line(graded))
        # One write for each row, some microseconds: nothing that was graded can be lost.
        self._file.flush()
        if time.monotonic() - self._seconds_saved_at > _SAVE_SECONDS_EVERY:
            self.save_about()

    def write_summary(self, rows: Sequence[GradedCompletion], summary: dict[str, Any]) -> None:
        """Put the rows in order, and the summary beside them."""
        _write_atomically(self.path, b"".join(map(_line, rows)))
        text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _write_atomically(self.folder / SUMMARY_FILE, text.encode())

    @property
    def facts(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        return {**self.about, "started": self.started, "seconds": round(self.clock.seconds, 3)}

    def save_about(self) -> None:
        text = json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n"
        _write_atomically(self.folder / EVALUATION_FILE, text.encode())
        self._seconds_saved_at = time.monotonic()

    def _require_same(self, facts: dict[str, Any]) -> None:
        there = _flat({key: value for key, value in facts.items() if key not in _BOOKKEEPING})
        here = _flat(self.about)
        differing = [
            f"{key}: {there.get(key, 'nothing')!r} there, {here.get(key, 'nothing')!r} here"
            for key in dict.fromkeys([*there, *here])
            if (key in there, there.get(key)) != (key in here, here.get(key))
        ]
        if differing:
            raise ResultsFolderError(
                f"{self.folder} holds another evaluation, which differs in\n  "
                + "\n  ".join(differing)
                + "\nChoose another folder, or delete this one to start anew, or go on with it by "
                f"what its {EVALUATION_FILE} says."
            )

    def _require_unused(self) -> None:
        ours = (RESULTS_FILE, SUMMARY_FILE, *REPORT_FILES)
        present = [name for name in ours if (self.folder / name).exists()]
        if present:
            raise ResultsFolderError(
                f"{self.folder} has {', '.join(present)} but no {EVALUATION_FILE}, so these are "
                "not of an evaluation that could go on; choose another folder, or move them away"
            )

    def _lock(self, file: IO[bytes]) -> None:
        try:
            # The lock of this process alone: its children do not keep it when it is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ResultsFolderError(
                f"another process is evaluating into {self.folder}; wait for it, end it, or choose "
                "another folder"
            ) from error

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        content = file.read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            file.truncate(complete)  # a kill cut the last line off
        for number, line in enumerate(content[:complete].splitlines(), start=1):
            try:
                graded = GradedCompletion.from_row(json.loads(line))
                self.rows.setdefault(self._number(graded), graded)
            except (json.JSONDecodeError, TypeError) as error:
                raise ResultsFolderError(
                    f"{self.path}:{number}: got {line[:80]!r}, expected one row of an evaluation; "
                    "remove the line, and its completion is generated again"
                ) from error

    def _number(self, graded: GradedCompletion) -> int:
        if graded.example is None:
            raise TypeError("the row has no example")
        return graded.example * self.num_completions + graded.completion


def _line(graded: GradedCompletion) -> bytes:
    return json.dumps(graded.as_row(), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _flat(facts: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(facts, dict) or not facts:
        return {name: facts}
    return {
        key: value
        for own, inner in facts.items()
        for key, value in _flat(inner, f"{name}.{own}" if name else own).items()
    }
