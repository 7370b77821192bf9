"""The folder of judgments, `judgments/NAME` in the folder of the answers.

`judge.json` says what was asked of whom.
"""

from pathlib import Path
from typing import Any

from .judged_tasks import Judgment, JudgmentKey, judgment_key
from .results_folder import RowsFolder, parse_rows

JUDGMENTS_FOLDER = "judgments"
JUDGMENTS_FILE = "judgments.jsonl"
JUDGE_FILE = "judge.json"
JUDGE_SUMMARY_FILE = "judge_summary.json"
JUDGE_REPORT_FILE = "judge_report.md"


class JudgmentsFolder(RowsFolder):
    """Judgments of one judge, by `judgment_key`."""

    facts_file = JUDGE_FILE
    files = (JUDGMENTS_FILE, JUDGE_SUMMARY_FILE, JUDGE_REPORT_FILE)
    other = "other judgments, which differ"
    row_name = "judgment"
    elsewhere = "choose another name (--name)"

    @staticmethod
    def keyed(row: dict[str, Any]) -> tuple[JudgmentKey, Judgment]:
        _ = row["verdict"]
        return judgment_key(row), row

    def add(self, row: Judgment) -> None:
        self.rows[judgment_key(row)] = row
        self.append(row)


def read_judgments(folder: Path) -> list[Judgment]:
    """The judgments in a folder.

    Raises:
        ResultsFolderError: A line is not a judgment.
    """
    path = folder / JUDGMENTS_FILE
    lines = path.read_bytes().splitlines()
    return [row for _, row in parse_rows(lines, path, JudgmentsFolder.keyed, "judgment")]
