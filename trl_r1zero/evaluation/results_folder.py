"""The folder of an evaluation: what was evaluated, and rows that survive a kill.

`results.jsonl` grows by one line as soon as a completion is graded, in whatever order they end;
when all are there it is rewritten in the order of the examples. `evaluation.json` says what was
evaluated, when it was started and the seconds it has taken so far, over all restarts.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .files import differing, json_line, json_text, lock, whole_lines, write_atomically
from .metrics import GradedCompletion

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
REPORT_FILES = ("report.md", "report.html")

# Keys of evaluation.json that say nothing about what is evaluated.
_BOOKKEEPING = ("started", "seconds")
_SAVE_SECONDS_EVERY = 1.0


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
            if not lock(self._file):
                raise ResultsFolderError(
                    f"another process is evaluating into {self.folder}; wait for it, end it, or "
                    "choose another folder"
                )
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
        self._file.write(json_line(graded.as_row()))
        # One write for each row, some microseconds: nothing that was graded can be lost.
        self._file.flush()
        if time.monotonic() - self._seconds_saved_at > _SAVE_SECONDS_EVERY:
            self.save_about()

    def write_summary(self, rows: Sequence[GradedCompletion], summary: dict[str, Any]) -> None:
        """Put the rows in order, and the summary beside them."""
        write_atomically(self.path, b"".join(json_line(row.as_row()) for row in rows))
        write_atomically(self.folder / SUMMARY_FILE, json_text(summary))

    @property
    def facts(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        return {**self.about, "started": self.started, "seconds": round(self.clock.seconds, 3)}

    def save_about(self) -> None:
        write_atomically(self.folder / EVALUATION_FILE, json_text(self.facts))
        self._seconds_saved_at = time.monotonic()

    def _require_same(self, facts: dict[str, Any]) -> None:
        there = {key: value for key, value in facts.items() if key not in _BOOKKEEPING}
        if differences := differing(there, self.about):
            raise ResultsFolderError(
                f"{self.folder} holds another evaluation, which differs in\n  "
                + "\n  ".join(differences)
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

    def _read(self, file: IO[bytes]) -> None:
        for number, line in enumerate(whole_lines(file), start=1):
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
