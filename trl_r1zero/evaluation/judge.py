"""Judge the answers of an evaluation: ask, write, summarise.

Everything is in `judgments/NAME` in the folder of the answers; `judge.json` says what was asked of
whom.
"""

import re
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from trl_r1zero.generation.chat_client import ChatClient

from .judge_report import judge_report
from .judged_tasks import AlpacaEval, JudgedTask, Judgment
from .results_folder import RowsFolder, parse_rows, row_key

JUDGMENTS_FOLDER = "judgments"
JUDGMENTS_FILE = "judgments.jsonl"
JUDGE_FILE = "judge.json"
JUDGE_SUMMARY_FILE = "judge_summary.json"
JUDGE_REPORT_FILE = "judge_report.md"


class JudgmentsFolder(RowsFolder):
    """Judgments of one judge."""

    facts_file = JUDGE_FILE
    files = (JUDGMENTS_FILE, JUDGE_SUMMARY_FILE, JUDGE_REPORT_FILE)
    columns = ("verdict",)
    other = "other judgments, which differ"
    row_name = "judgment"
    elsewhere = "choose another name (--name)"


def read_judgments(folder: Path) -> list[Judgment]:
    """The judgments in a folder; ResultsFolderError if a line is not one."""
    path = folder / JUDGMENTS_FILE
    lines = path.read_bytes().splitlines()
    return list(parse_rows(lines, path, "judgment", JudgmentsFolder.columns).values())


class Judged(NamedTuple):
    """Where the judgments are written, and their summary."""

    folder: Path
    summary: dict[str, Any]


def judge_answers(task: JudgedTask, judge: ChatClient, *, name: str | None = None) -> Judged:
    """Ask the judge for every verdict that is not there yet, and say what they amount to.

    All is written to `judgments/NAME` in the folder of the answers: each judgment as soon as it
    comes, `judge_summary.json` and `judge_report.md` at the end. The same call after a kill or a
    failure asks only what is missing. docs/benchmarks.md describes the files.

    Args:
        task: The answers and the questions about them; see `judged_task`.
        judge: Whom to ask.
        name: Of the judgments. None: after the judge and, if it is not the data's own, the
            reference.

    Raises:
        ResultsFolderError: There are judgments of that name by another judge, or on other answers.
        ChatServerError: The judge cannot be asked; what it said before is written.
    """
    about = {**task.facts, "judge": {"model": judge.model, **judge.body}}
    path = task.folder.path / JUDGMENTS_FOLDER / (name or default_name(task, judge.model))
    with JudgmentsFolder(path, about, len(task.asks), url=judge.url) as judgments:
        missing = [ask for ask in task.asks if row_key(ask.columns) not in judgments.rows]
        for ask in missing:
            if ask.settled is not None:
                verdict = {"verdict": ask.settled, "reply": None, "finish_reason": None}
                judgments.add({**ask.columns, **verdict})
        missing = [ask for ask in missing if ask.settled is None]
        bar = tqdm(
            total=len(task.asks),
            initial=len(judgments.rows),
            desc=f"Judging {task.folder.path.name}",
            unit="verdict",
            disable=not missing,
        )
        # Closed, the judge stops asking.
        with bar, closing(judge.ask_all([ask.prompt for ask in missing])) as replies:
            for position, reply in replies:
                ask = missing[position]
                verdict = {
                    "verdict": task.verdict(ask, reply.text),
                    "reply": reply.text,
                    "finish_reason": reply.finish_reason,
                }
                judgments.add({**ask.columns, **verdict})
                bar.update()
        rows = [judgments.rows[row_key(ask.columns)] for ask in task.asks]
        summary = task.summarize(rows)
        judgments.finish(rows, summary)
        report = judge_report(task, rows, summary, judgments.facts)
        (path / JUDGE_REPORT_FILE).write_text(report, encoding="utf-8")
    return Judged(path, summary)


def default_name(task: JudgedTask, judge_model: str) -> str:
    """`llama-3.3-70b`, or `llama-3.3-70b-vs-gpt-4` for a reference that is not the data's own."""
    name = Path(judge_model).name
    if isinstance(task, AlpacaEval) and not task.references.is_of_the_data:
        name += f"-vs-{Path(task.references.generator).name}"
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "judge"
