"""The report of an evaluation, to read: `report.md` and `report.html`."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.data.bad_rows import skipped_in_words
from trl_r1zero.rewards import lenient_opinion

from .files import REPORT_FILES
from .metrics import GradedCompletion
from .numbers import (
    COUNT,
    LENGTH,
    SHARE,
    groups_table,
    interval_words,
    metric_rows,
    metrics_table,
    with_error,
)
from .pages import Example, Page, Section, Table, as_html, as_markdown, pick
from .summary import BREAKDOWNS, category

EXAMPLES_PER_CATEGORY = 10

# The categories in words, for headings and for the bar.
_CATEGORIES = {
    "format_1_answer_1": "Right: format 1, answer 1",
    "format_1_answer_0": "Wrong: format 1, answer 0",
    "format_0": "Unformatted or unparsed: format 0",
}
# Rows of the table of results: metric -> label, how to write the number.
_RESULTS = {
    "num_examples": ("examples", COUNT),
    "num_completions": ("completions of each", COUNT),
    "accuracy": ("accuracy", SHARE),
    "accuracy_interval": ("accuracy, 95% interval", interval_words),
    "accuracy_mean_of_subjects": ("accuracy, mean of subjects", SHARE),
    "format_reward": ("format reward", SHARE),
    "reward": ("reward", SHARE),
    "truncated": ("truncated (share)", SHARE),
    "length": ("mean length (tokens)", LENGTH),
    "length_correct": ("mean length, correct", LENGTH),
    "length_incorrect": ("mean length, incorrect", LENGTH),
    "entropy": ("entropy (nats per token)", SHARE),
    "mean_log_prob": ("log-probability (nats per token)", SHARE),
    "num_tokens": ("tokens sampled", COUNT),
    "seconds": ("seconds", LENGTH),
    "examples_per_second": ("examples per second", LENGTH),
    "completions_per_second": ("completions per second", LENGTH),
    "tokens_per_second": ("tokens per second", COUNT),
}
# Columns of the tables by level and by subject.
_BREAKDOWN = {
    "num_examples": ("examples", COUNT),
    "accuracy": ("accuracy", SHARE),
    "format_reward": ("format reward", SHARE),
    "length": ("mean length", LENGTH),
}
_PERCENT = "{:.1%}".format
# What is seen first in HTML.
_CARDS = {
    "accuracy": ("Accuracy", _PERCENT),
    "format_reward": ("Format reward", _PERCENT),
    "length": ("Mean length (tokens)", LENGTH),
    "tokens_per_second": ("Tokens per second", COUNT),
}
# Settings that stand first in the header; all others follow at its end.
_SETTINGS = ("model", "task", "data", "split", "prompt", "backend")


def write_evaluation_report(
    folder: str | Path,
    rows: Sequence[GradedCompletion],
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write `report.md` and `report.html` of an evaluation into its folder: of the graded
    completions, those of an example together, what `summarize_evaluation` says of them, and what
    `evaluation.json` holds."""
    page = _page(rows, summary, facts)
    for name, text in zip(REPORT_FILES, (as_markdown(page), as_html(page)), strict=True):
        Path(folder, name).write_text(text, encoding="utf-8")


def results_table(summary: Mapping[str, Any]) -> str:
    """The main numbers of a summary for a terminal, with standard errors: a Markdown table."""
    table = metrics_table(_results(summary))
    if summary.get("truncated") == 1:
        table += (
            "\n\nEvery completion was cut off at max_tokens. Raise it, or see whether the model "
            "ever writes what ends an answer: the prompt's stop string, or its end token."
        )
    return table


def _page(
    rows: Sequence[GradedCompletion], summary: Mapping[str, Any], facts: Mapping[str, Any]
) -> Page:
    names = [str(facts["settings"][n]) for n in ("model", "task") if facts["settings"].get(n)]
    errors = "The number behind ± is the standard error of the mean over examples" + (
        "; the completions of one example count as one." if summary["num_completions"] > 1 else "."
    )
    if skipped := summary.get("skipped_rows"):
        errors += f" The data set was not evaluated as a whole: {skipped_in_words(skipped)}."
    page = Page(
        "Evaluation" + (f" of {' on '.join(names)}" if names else ""),
        cards=metric_rows(summary, _CARDS),
        sections=[
            Section("What was evaluated", tables=[_header(facts)]),
            Section("Results", [errors], [Table(["metric", "value"], _results(summary))]),
        ],
    )
    if "pass@1" in summary:
        page.sections.append(_several_completions(summary))
    reasons = [[name, COUNT(count)] for name, count in summary["finish_reasons"].items()]
    finish_reasons = Table(["finish reason", "n"], reasons)
    num_completions = summary["num_completions"]
    if "categories" not in summary:
        about = f"Some of {len(rows):,} completions, picked at random. They are not graded."
        page.sections += [
            Section("Finish reasons", tables=[finish_reasons]),
            Section("Answers", [about], examples=_some(rows, num_completions)),
        ]
        return page
    categories = summary["categories"]
    page.bar = [(label, categories[name].get("share", 0.0)) for name, label in _CATEGORIES.items()]
    page.sections.append(Section("Categories", tables=[*_categories(summary), finish_reasons]))
    page.sections += lenient_section(rows)
    page.sections += [
        Section(f"By {name}", tables=[groups_table(name, summary[f"by_{name}"], _BREAKDOWN)])
        for name in BREAKDOWNS
        if f"by_{name}" in summary
    ]
    for name, label in _CATEGORIES.items():
        part = categories[name]
        share = f" ({part['share']:.1%})" if "share" in part else ""
        about = f"{part['count']:,} of {len(rows):,} completions{share}."
        of_category = [row for row in rows if category(row) == name]
        page.sections.append(Section(label, [about], examples=_some(of_category, num_completions)))
    return page


def _header(facts: Mapping[str, Any]) -> Table:
    settings = dict(facts["settings"])
    known = [(name, settings.pop(name)) for name in _SETTINGS if name in settings]
    known += [(name, facts[name]) for name in ("engine", "sampling", "seed", "reward", "started")]
    settings.pop("skipped_rows", None)  # are among the results
    known += settings.items()
    return Table(["what", "value"], [[name, _in_words(value)] for name, value in known], False)


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(inner)}" for name, inner in value.items())
    return json.dumps(value, ensure_ascii=False)


def _results(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = metric_rows(summary, _RESULTS)
    if skipped := summary.get("skipped_rows"):
        rows.insert(1, ("left out", f"{COUNT(skipped['skipped'])} of {COUNT(skipped['of'])}"))
    if "format_reward" in summary:
        after = [label for label, _ in rows].index("format reward") + 1
        count = COUNT(summary["categories"]["format_0"]["count"])
        rows.insert(after, ("unformatted or unparsed", count))
    return rows


def _several_completions(summary: Mapping[str, Any]) -> Section:
    sizes = [name.removeprefix("pass@") for name in summary if re.fullmatch(r"pass@\d+", name)]
    kinds = [kind for kind in ("pass", "maj") if f"{kind}@1" in summary]
    rows = [[k, *(with_error(summary, f"{kind}@{k}") for kind in kinds)] for k in sizes]
    average = f"avg@{summary['num_completions']}"
    about = (
        f"{average}, the mean over the examples of the mean over their completions: "
        f"{with_error(summary, average)}. pass@k: the chance that one of k completions is right. "
        "maj@k: the chance that the most frequent answer of k completions is."
    )
    header = ["k", *(f"{kind}@k" for kind in kinds)]
    return Section("Several completions", [about], [Table(header, rows)])


def _categories(summary: Mapping[str, Any]) -> list[Table]:
    groups = {label: summary["categories"][name] for name, label in _CATEGORIES.items()}
    columns = {"count": ("n", COUNT), "share": ("share", SHARE), "length": ("mean length", LENGTH)}
    tables = [groups_table("category", groups, columns)]
    rules = [
        [_CATEGORIES[name], rule, COUNT(count)]
        for name, counts in summary["rules"].items()
        for rule, count in counts.items()
    ]
    if rules:
        tables.append(Table(["category", "rule that decided", "n"], rules, False))
    return tables


def _opinion(row: GradedCompletion) -> str | None:
    """What the lenient grader says of an answer that the strict one calls wrong."""
    if not row.graded or row.correct:
        return None
    return lenient_opinion(row.extra.get("rule"), row.response, row.ground_truth)


def lenient_section(rows: Sequence[GradedCompletion]) -> list[Section]:
    """The wrong answers that the lenient grader calls right, and by which rule."""
    opinions = [opinion for opinion in map(_opinion, rows) if opinion]
    right = Counter(opinion for opinion in opinions if opinion.startswith("right"))
    if not opinions:
        return []
    about = (
        f"Of {len(opinions):,} wrong answers, the lenient grader (reward `math`) calls "
        f"{right.total():,} right."
    )
    counts = [[opinion, COUNT(count)] for opinion, count in right.most_common()]
    tables = [Table(["lenient grader", "n"], counts)] if counts else []
    return [Section("What the lenient grader would say", [about], tables)]


def _some(rows: Sequence[GradedCompletion], num_completions: int) -> list[Example]:
    """Up to ten of the rows, in their order; the same rows give the same ones."""
    return [_example(row, num_completions) for row in pick(rows, EXAMPLES_PER_CATEGORY)]


def _example(row: GradedCompletion, num_completions: int) -> Example:
    title = f"Example {row.example}"
    if num_completions > 1:
        title += f", completion {row.completion}"
    extra, metadata = row.extra, row.extra.get("metadata", {})
    facts = [f"{name} {value:g}" for name, value in row.rewards.items()]
    facts += [f"rule {extra['rule']}"] if extra.get("rule") else []
    opinion = _opinion(row)
    facts += [f"lenient grader: {opinion}"] if opinion else []
    facts.append(f"{row.length} tokens")
    facts += [f"finish reason {extra['finish_reason']}"] if "finish_reason" in extra else []
    facts += [f"entropy {row.entropy:.3f}"] if row.entropy is not None else []
    facts += [f"{name} {metadata[name]}" for name in BREAKDOWNS if name in metadata]
    # What is not graded is only compared.
    truth_name = "Ground truth" if row.graded else "Reference"
    truth = {truth_name: _in_words(row.ground_truth)}
    return Example(title, facts, {"Prompt": row.prompt, "Response": row.response, **truth})
