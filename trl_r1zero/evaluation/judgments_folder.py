"""The folder of judgments, `judgments/NAME` in the folder of the answers.

`judgments.jsonl` grows by one line as soon as the judge has replied, in whatever order; when all
are there it is rewritten in the order of the examples. `judge.json` says what was asked of whom.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .files import differing, json_line, json_text, lock, whole_lines, write_atomically
from .judged_tasks import Judgment, JudgmentKey, judgment_key
from .results_folder import ResultsFolderError

JUDGMENTS_FOLDER = "judgments"
JUDGMENTS_FILE = "judgments.jsonl"
JUDGE_FILE = "judge.json"
JUDGE_SUMMARY_FILE = "judge_summary.json"
JUDGE_REPORT_FILE = "judge_report.md"

# Keys of judge.json that say nothing about what is judged by whom.
_BOOKKEEPING = ("started", "url")


class JudgmentsFolder:
    """Judgments of one judge on disk; a context manager.

    Args:
        folder: Made where it does not exist.
        about: What identifies judge and questions, compared with what the folder holds.
        url: Where the judge is, which may change.
        num_rows: Judgments when all is done.

    Attributes:
        rows: The judgments that are there; `add` adds to them.

    Raises:
        ResultsFolderError: The folder holds judgments of another judge or on other answers, or a
            line that is none. On entering: another process is at work in it.
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], url: str, *, num_rows: int
    ) -> None:
        self.folder = Path(folder)
        self.num_rows = num_rows
        self.rows: dict[JudgmentKey, Judgment] = {}
        self.facts = {**about, "url": url, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._file: IO[bytes] | None = None
        path = self.folder / JUDGE_FILE
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            self.facts["started"] = facts["started"]
            there = {key: value for key, value in facts.items() if key not in _BOOKKEEPING}
            if differences := differing(there, about):
                raise ResultsFolderError(
                    f"{self.folder} holds other judgments, which differ in\n  "
                    + "\n  ".join(differences)
                    + "\nGive these a name of their own (--name), or delete the folder to judge "
                    "anew."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ResultsFolderError(
                f"{self.folder} is not empty and has no {JUDGE_FILE}, so it is not of judgments "
                "that could go on; choose another name (--name), or move it away"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json_text(self.facts))

    @property
    def path(self) -> Path:
        return self.folder / JUDGMENTS_FILE

    def __enter__(self) -> "JudgmentsFolder":
        self._file = self.path.open("a+b")
        try:
            if not lock(self._file):
                raise ResultsFolderError(
                    f"another process is judging into {self.folder}; wait for it, end it, or "
                    "choose another name (--name)"
                )
            for row in parse_judgments(whole_lines(self._file), self.path):
                self.rows.setdefault(judgment_key(row), row)
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
        if error is not None:
            error.add_note(
                f"{len(self.rows)} of {self.num_rows} judgments are in {self.path}; the same "
                "command goes on from there"
            )

    def add(self, row: Judgment) -> None:
        """Write a judgment, before the next one is looked at."""
        assert self._file is not None
        self.rows[judgment_key(row)] = row
        self._file.write(json_line(row))
        self._file.flush()

    def finish(self, rows: Sequence[Judgment], summary: Mapping[str, Any], report: str) -> None:
        """Put the judgments in order, and summary and report beside them."""
        write_atomically(self.path, b"".join(map(json_line, rows)))
        write_atomically(self.folder / JUDGE_SUMMARY_FILE, json_text(summary))
        write_atomically(self.folder / JUDGE_REPORT_FILE, report.encode())


def parse_judgments(lines: Sequence[bytes], path: Path) -> list[Judgment]:
    """The rows of a `judgments.jsonl`.

    Raises:
        ResultsFolderError: A line is no judgment.
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            judgment_key(row), row["verdict"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ResultsFolderError(
                f"{path}:{number}: got {line[:80]!r}, expected one judgment; remove the line, and "
                "it is asked for again"
            ) from error
        rows.append(row)
    return rows
