"""Responses of a file, of whatever model or program, graded and reported."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.data.bad_rows import reading, skipped_in_words, usable
from trl_r1zero.data.files import Row, read_jsonl
from trl_r1zero.grading import Grade, Grader
from trl_r1zero.rewards import lenient_opinion, resolve_reward

from .files import REPORT_FILES, json_line, write_atomically
from .metrics import GradedCompletion, mean, share_interval
from .numbers import COUNT, SHARE, interval_words, metrics_table
from .pages import Example, Page, Section, Table, as_html, as_markdown, pick
from .report import EXAMPLES_PER_CATEGORY, lenient_section

GRADES_FILE = "grades.jsonl"


def grade_file(
    path: str | Path,
    reward: str,
    folder: str | Path,
    *,
    on_bad_row: str = "error",
    reward_workers: int | None = None,
    deadline_seconds: float = 5.0,
) -> str:
    """Grade the rows of a JSON-lines file, and write `grades.jsonl`, `report.md`, `report.html`.

    Args:
        path: Rows with `response` (a text) and `ground_truth` (what the reward takes). They are
            written to `grades.jsonl` as they are, with one more field, `grade`.
        reward: A name or a dotted path, as in recipes.
        folder: Where to write; made if it is not there. What was written there before is replaced.
        on_bad_row: `error`, or `skip` rows that cannot be graded.
        reward_workers: Processes that grade; None: 2 for functions named by a dotted path, else 0.
        deadline_seconds: With workers, what one row may take.

    Returns:
        The table of results, as Markdown.

    Raises:
        ValueError: There is no such reward, or a row cannot be graded.
        OSError: The file cannot be read, or the folder not be written.
    """
    function = resolve_reward(reward)
    workers = (2 if "." in reward else 0) if reward_workers is None else reward_workers
    with reading(str(path), on_bad_row) as bad_rows:
        rows = list(usable(_gradable, read_jsonl(path)))
    with Grader(function, workers=workers, deadline_seconds=deadline_seconds) as grader:
        grades = _grades(grader, rows)
    graded = [_completion(number, rows[number], grade) for number, grade in enumerate(grades)]
    lines = [
        json_line({**row.fields, "grade": {**one.rewards, **one.extra, **grade.columns}})
        for row, one, grade in zip(rows, graded, grades, strict=True)
    ]
    skipped = bad_rows.facts() if bad_rows.errors else None
    page = _page(path, reward, graded, skipped)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / GRADES_FILE, b"".join(lines))
    for name, text in zip(REPORT_FILES, (as_markdown(page), as_html(page)), strict=True):
        write_atomically(folder / name, text.encode())
    return metrics_table(_results(graded))


def _grades(grader: Grader, rows: Sequence[Row]) -> list[Grade]:
    pairs = [(row.fields["response"], row.fields["ground_truth"]) for row in rows]
    if grader.pool is not None:
        return grader.grade(pairs)
    grades = []
    for row, pair in zip(rows, pairs, strict=True):
        try:
            grades += grader.grade([pair])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{row.where}: {error}") from error
    return grades


def _completion(number: int, row: Row, grade: Grade) -> GradedCompletion:
    response, truth = row.fields["response"], row.fields["ground_truth"]
    one = GradedCompletion("", response, truth, grade.parts, 0, False, example=number)
    one.extra = {"rule": grade.rule, "answer": grade.answer}
    if not one.correct and (opinion := lenient_opinion(grade.rule, response, truth)):
        one.extra["lenient"] = opinion
    return one


def _gradable(row: Row) -> Row:
    if not isinstance(row.fields.get("response"), str):  # an empty one is an answer, a wrong one
        row.text("response")
    if row.fields.get("ground_truth") is None:
        raise row.error("ground_truth", "nothing", "what the reward compares with", "add it")
    return row


def _results(rows: Sequence[GradedCompletion]) -> list[tuple[str, str]]:
    right = [float(row.correct) for row in rows]
    results = [
        ("responses", COUNT(len(rows))),
        ("right", COUNT(sum(right))),
        ("accuracy", SHARE(mean(right))),
        ("accuracy, 95% interval", interval_words(share_interval(right))),
    ]
    names = dict.fromkeys(name for row in rows for name in row.rewards)
    return results + [
        (name.replace("_", " "), SHARE(mean([row.rewards[name] for row in rows])))
        for name in names
        if name != "answer_reward"
    ]


def _page(
    path: str | Path, reward: str, rows: Sequence[GradedCompletion], skipped: dict[str, Any] | None
) -> Page:
    sentences = [f"{Path(path).name}, graded by the reward {reward}."]
    if skipped:
        sentences.append(f"Rows left out: {skipped_in_words(skipped)}.")
    page = Page(
        f"Grades of {Path(path).name}",
        cards=_results(rows)[:3],
        sections=[Section("Results", sentences, [Table(["metric", "value"], _results(rows))])],
    )
    if rules := Counter((row.correct, row.extra["rule"]) for row in rows if row.extra["rule"]):
        counts = [
            ["right" if correct else "wrong", rule, COUNT(count)]
            for (correct, rule), count in rules.most_common()
        ]
        table = Table(["verdict", "rule", "n"], counts, False)
        page.sections.append(Section("Rules that decided", tables=[table]))
    page.sections += lenient_section(rows)
    for heading, correct in (("Wrong", False), ("Right", True)):
        some = [row for row in rows if row.correct == correct]
        examples = [_example(row) for row in pick(some, EXAMPLES_PER_CATEGORY)]
        about = f"{len(some):,} of {len(rows):,} responses."
        page.sections.append(Section(heading, [about], examples=examples))
    return page


def _example(row: GradedCompletion) -> Example:
    facts = [f"{name} {value:g}" for name, value in row.rewards.items()]
    facts += [f"{name} {row.extra[name]}" for name in ("rule", "answer") if row.extra[name]]
    facts += [f"lenient grader: {row.extra['lenient']}"] if "lenient" in row.extra else []
    texts = {"Response": row.response, "Ground truth": str(row.ground_truth)}
    return Example(f"Row {(row.example or 0) + 1}", facts, texts)
