"""What a judge said, to read: `judge_report.md`, and the table for a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .evaluated import question_of
from .judged_tasks import AlpacaEval, JudgedTask, Judgment
from .metrics import grouped
from .numbers import COUNT, LENGTH, SHARE, groups_table, metric_rows, metrics_table
from .pages import Example, Page, Section, Table, as_markdown, pick

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
        examples = [_example(task, key, replies[key]) for key in pick(of_kind, EXAMPLES_SHOWN)]
        if examples:
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
