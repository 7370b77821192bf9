"""Judge the answers of an evaluation: ask, write, summarise.

Everything is in `judgments/NAME` in the folder of the answers; `judge.json` says what was asked of
whom.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from trl_r1zero.generation.chat_client import ChatClient

from .evaluated import question_of
from .files import RowsFolder, parse_rows, row_key
from .judged_tasks import AlpacaEval, JudgedTask, Judgment
from .metrics import grouped
from .numbers import COUNT, LENGTH, SHARE, groups_table, metric_rows, metrics_table
from .pages import Example, Page, Section, Table, as_markdown, pick

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
        about_bar: dict[str, Any] = {"desc": f"Judging {task.folder.path.name}", "unit": "verdict"}
        done = len(judgments.rows)
        bar = tqdm(total=len(task.asks), initial=done, disable=not missing, **about_bar)
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


# What the judge said, to read

EXAMPLES_SHOWN = 10

# Rows of the table: metric -> label, how to write the number.
_RESULTS = {
    "num_examples": ("questions", COUNT),
    "win_rate": ("win rate", SHARE),
    "length_controlled_win_rate": ("length-controlled win rate", SHARE),
    "safe": ("safe (share)", SHARE),
    "safe_at_least": ("safe, if all unparsed are unsafe", SHARE),
    "safe_at_most": ("safe, if all unparsed are safe", SHARE),
    "wins": ("wins", COUNT),
    "losses": ("losses", COUNT),
    "ties": ("ties", COUNT),
    "identical": ("identical outputs (not asked)", COUNT),
    "num_safe": ("safe", COUNT),
    "num_unsafe": ("unsafe", COUNT),
    "num_verdicts": ("verdicts asked for", COUNT),
    "unparsed": ("unparsed", COUNT),
    "order_consistent": ("same verdict in both orders (share)", SHARE),
    "first_preferred": ("first shown preferred (share)", SHARE),
    "length": ("mean length (characters)", LENGTH),
    "reference_length": ("mean length of the reference", LENGTH),
}


def judge_table(summary: Mapping[str, Any]) -> str:
    """The numbers of a summary with their standard errors: a Markdown table."""
    return metrics_table(metric_rows(summary, _RESULTS))


def judge_report(
    task: JudgedTask,
    judgments: Sequence[Judgment],
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """The text of `judge_report.md`; `facts`: what judge.json holds."""
    judge = dict(facts["judge"])
    header = {
        "model": facts["model"],
        "judge": judge.pop("model"),
        "answers": str(task.folder.path),
        **({"reference": facts["reference"]["generator"]} if "reference" in facts else {}),
        **{name: json.dumps(value, ensure_ascii=False) for name, value in judge.items()},
        "started": facts["started"],
    }
    page = Page(
        f"{facts['model']} on {task.name}, judged by {facts['judge']['model']}",
        sections=[
            Section(
                "What was judged", tables=[Table(["what", "value"], list(header.items()), False)]
            ),
            Section(
                "Results",
                ["The number behind ± is the standard error of the mean over questions."],
                [Table(["metric", "value"], metric_rows(summary, _RESULTS))],
            ),
        ],
    )
    if parts := summary.get(f"by_{task.breakdown}"):
        column = task.breakdown.replace("_", " ")
        metrics = {name: _RESULTS[name] for name in ("num_examples", task.metric, "unparsed")}
        page.sections.append(Section(f"By {column}", tables=[groups_table(column, parts, metrics)]))
    page.sections += _examples(task, judgments)
    return as_markdown(page)


def _examples(task: JudgedTask, judgments: Sequence[Judgment]) -> list[Section]:
    """Some answers of each kind that one wants to see, the same ones every time."""
    replies = grouped(((row["example"], row["completion"]), row) for row in judgments)
    sections = []
    for heading, belongs in (task.failure, ("Unparsed replies", lambda verdicts: None in verdicts)):
        of_kind = [key for key, rows in replies.items() if belongs([r["verdict"] for r in rows])]
        if examples := [_example(task, key, replies[key]) for key in pick(of_kind, EXAMPLES_SHOWN)]:
            about = f"{len(of_kind):,} of {len(replies):,} answers."
            sections.append(Section(heading, [about], examples=examples))
    return sections


def _example(task: JudgedTask, key: tuple[int, int], judgments: Sequence[Judgment]) -> Example:
    example, completion = key
    row = next(r for r in task.folder.rows if (r["example"], r["completion"]) == key)
    texts = {"Question": question_of(row), f"Answer of {task.folder.model}": task.answers[key]}
    if isinstance(task, AlpacaEval):
        texts[f"Output of {task.references.generator}"] = task.references.outputs[example]
    facts = []
    for judgment in judgments:
        order = f", {judgment['first']} shown first" if "first" in judgment else ""
        texts[f"The judge{order}"] = judgment["reply"] or ""
        facts.append(f"{judgment['verdict'] or 'unparsed'}{order}")
    metadata = row.get("metadata") or {}
    facts += [f"{name} {metadata[name]}" for name in (task.breakdown,) if name in metadata]
    title = f"Example {example}" + (f", completion {completion}" if completion else "")
    return Example(title, facts, {name: text or "(empty)" for name, text in texts.items()})
