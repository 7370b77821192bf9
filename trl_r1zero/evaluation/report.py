"""The report of an evaluation, to read: `report.md` and `report.html`."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .markdown import table
from .metrics import GradedCompletion
from .pages import Page, Section, Shown, Table, as_html, as_markdown
from .results_folder import REPORT_FILES
from .summary import BREAKDOWNS, category

EXAMPLES_PER_CATEGORY = 10

# The categories in words, for headings and for the bar.
_CATEGORIES = {
    "format_1_answer_1": "Right: format 1, answer 1",
    "format_1_answer_0": "Wrong: format 1, answer 0",
    "format_0": "Unformatted or unparsed: format 0",
}
_SHARE = "{:.4f}".format
_LENGTH = "{:.1f}".format
_COUNT = "{:,.0f}".format
# Rows of the table of results: metric -> label, how to write the number.
_RESULTS = {
    "num_examples": ("examples", _COUNT),
    "num_completions": ("completions of each", _COUNT),
    "accuracy": ("accuracy", _SHARE),
    "accuracy_mean_of_subjects": ("accuracy, mean of subjects", _SHARE),
    "format_reward": ("format reward", _SHARE),
    "reward": ("reward", _SHARE),
    "truncated": ("truncated (share)", _SHARE),
    "length": ("mean length (tokens)", _LENGTH),
    "length_correct": ("mean length, correct", _LENGTH),
    "length_incorrect": ("mean length, incorrect", _LENGTH),
    "entropy": ("entropy (nats per token)", _SHARE),
    "mean_log_prob": ("log-probability (nats per token)", _SHARE),
    "num_tokens": ("tokens sampled", _COUNT),
    "seconds": ("seconds", _LENGTH),
    "examples_per_second": ("examples per second", _LENGTH),
    "completions_per_second": ("completions per second", _LENGTH),
    "tokens_per_second": ("tokens per second", _COUNT),
}
# Settings that stand first in the header; all others follow at its end.
_SETTINGS = ("model", "task", "data", "split", "prompt", "backend")


def write_evaluation_report(
    folder: str | Path,
    rows: Sequence[GradedCompletion],
    summary: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write `report.md` and `report.html` of an evaluation into its folder.

    Args:
        folder: Where to.
        rows: The graded completions, those of an example together.
        summary: What `summarize_evaluation` says of them.
        facts: What `evaluation.json` holds.
    """
    page = _page(rows, summary, facts)
    for name, text in zip(REPORT_FILES, (as_markdown(page), as_html(page)), strict=True):
        Path(folder, name).write_text(text, encoding="utf-8")


def results_table(summary: Mapping[str, Any]) -> str:
    """The main numbers of a summary for a terminal, with standard errors: a Markdown table."""
    return "\n".join(table(["metric", "value"], _results(summary)))


def _page(
    rows: Sequence[GradedCompletion], summary: Mapping[str, Any], facts: Mapping[str, Any]
) -> Page:
    settings = facts["settings"]
    names = [str(settings[name]) for name in ("model", "task") if settings.get(name)]
    errors = "The number behind ± is the standard error of the mean over examples" + (
        "; the completions of one example count as one." if summary["num_completions"] > 1 else "."
    )
    page = Page(
        "Evaluation" + (f" of {' on '.join(names)}" if names else ""),
        cards=_cards(summary),
        bar=_bar(summary),
        sections=[
            Section("What was evaluated", tables=[_header(facts)]),
            Section("Results", [errors], [Table(["metric", "value"], _results(summary))]),
        ],
    )
    if "pass@1" in summary:
        page.sections.append(_several_completions(summary))
    if not _is_graded(summary):
        page.sections += [_finish_reasons(summary), _ungraded_examples(rows, summary)]
        return page
    page.sections.append(_categories(summary))
    page.sections += [
        Section(f"By {name}", tables=[_breakdown(name, summary[f"by_{name}"])])
        for name in BREAKDOWNS
        if f"by_{name}" in summary
    ]
    page.sections += [_examples(name, rows, summary) for name in _CATEGORIES]
    return page


def _is_graded(summary: Mapping[str, Any]) -> bool:
    return "categories" in summary


def _bar(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    if not _is_graded(summary):
        return []
    return [
        (label, summary["categories"][name].get("share", 0.0))
        for name, label in _CATEGORIES.items()
    ]


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    metrics = {
        "accuracy": ("Accuracy", "{:.1%}".format),
        "format_reward": ("Format reward", "{:.1%}".format),
        "length": ("Mean length (tokens)", _LENGTH),
        "tokens_per_second": ("Tokens per second", _COUNT),
    }
    return [
        (label, _with_error(summary, name, write))
        for name, (label, write) in metrics.items()
        if name in summary
    ]


def _with_error(metrics: Mapping[str, float], name: str, write: Any) -> str:
    error = metrics.get(f"{name}_stderr")
    return write(metrics[name]) + ("" if error is None else f" ± {write(error)}")


def _header(facts: Mapping[str, Any]) -> Table:
    settings = dict(facts["settings"])
    known = [(name, settings.pop(name)) for name in _SETTINGS if name in settings]
    known += [(name, facts[name]) for name in ("engine", "sampling", "seed", "reward", "started")]
    known += settings.items()
    return Table(["what", "value"], [[name, _in_words(value)] for name, value in known], False)


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(inner)}" for name, inner in value.items())
    return json.dumps(value, ensure_ascii=False)


def _results(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, (label, write) in _RESULTS.items():
        if name in summary:
            rows.append([label, _with_error(summary, name, write)])
        if name == "format_reward" and name in summary:
            count = _COUNT(summary["categories"]["format_0"]["count"])
            rows.append(["unformatted or unparsed", count])
    return rows


def _several_completions(summary: Mapping[str, Any]) -> Section:
    sizes = [name.removeprefix("pass@") for name in summary if name.startswith("pass@")]
    kinds = [kind for kind in ("pass", "maj") if f"{kind}@1" in summary]
    rows = [
        [k, *(_with_error(summary, f"{kind}@{k}", _SHARE) for kind in kinds)]
        for k in sizes
        if not k.endswith("_stderr")
    ]
    return Section(
        "Several completions",
        [
            "pass@k: the chance that one of k completions is right. maj@k: the chance that the "
            "most frequent answer of k completions is."
        ],
        [Table(["k", *(f"{kind}@k" for kind in kinds)], rows)],
    )


def _categories(summary: Mapping[str, Any]) -> Section:
    rows = []
    for name, label in _CATEGORIES.items():
        part = summary["categories"][name]
        share = _with_error(part, "share", _SHARE) if "share" in part else "-"
        length = _LENGTH(part["length"]) if "length" in part else "-"
        rows.append([label, _COUNT(part["count"]), share, length])
    tables = [Table(["category", "n", "share", "mean length"], rows)]
    rules = [
        [_CATEGORIES[name], rule, _COUNT(count)]
        for name, counts in summary["rules"].items()
        for rule, count in counts.items()
    ]
    if rules:
        tables.append(Table(["category", "rule that decided", "n"], rules, False))
    tables += _finish_reasons(summary).tables
    return Section("Categories", tables=tables)


def _finish_reasons(summary: Mapping[str, Any]) -> Section:
    reasons = [[name, _COUNT(count)] for name, count in summary["finish_reasons"].items()]
    return Section("Finish reasons", tables=[Table(["finish reason", "n"], reasons)])


def _breakdown(name: str, groups: Mapping[str, Mapping[str, float]]) -> Table:
    rows = []
    for value, metrics in groups.items():
        formatted = _SHARE(metrics["format_reward"]) if "format_reward" in metrics else "-"
        rows.append(
            [
                value,
                _COUNT(metrics["num_examples"]),
                _with_error(metrics, "accuracy", _SHARE),
                formatted,
                _LENGTH(metrics["length"]),
            ]
        )
    return Table([name, "examples", "accuracy", "format reward", "mean length"], rows)


def _examples(name: str, rows: Sequence[GradedCompletion], summary: Mapping[str, Any]) -> Section:
    part = summary["categories"][name]
    of_category = [row for row in rows if category(row) == name]
    share = f" ({part['share']:.1%})" if "share" in part else ""
    return Section(
        _CATEGORIES[name],
        [f"{part['count']:,} of {len(rows):,} completions{share}."],
        examples=_some(of_category, summary["num_completions"]),
    )


def _ungraded_examples(rows: Sequence[GradedCompletion], summary: Mapping[str, Any]) -> Section:
    return Section(
        "Answers",
        [f"Some of {len(rows):,} completions, picked at random. They are not graded."],
        examples=_some(rows, summary["num_completions"]),
    )


def _some(rows: Sequence[GradedCompletion], num_completions: int) -> list[Shown]:
    """Up to ten of the rows, in their order; the same rows give the same ones."""
    numbers = range(len(rows))
    chosen = random.Random(0).sample(numbers, min(EXAMPLES_PER_CATEGORY, len(rows)))
    return [_shown(rows[number], num_completions) for number in sorted(chosen)]


def _shown(row: GradedCompletion, num_completions: int) -> Shown:
    title = f"Example {row.example}"
    if num_completions > 1:
        title += f", completion {row.completion}"
    facts = [f"{name} {value:g}" for name, value in row.rewards.items()]
    facts += [f"{name} {row.extra[name]}" for name in ("rule",) if row.extra.get(name)]
    facts += [f"{row.length} tokens", *_facts(row)]
    truth = row.ground_truth if isinstance(row.ground_truth, str) else _in_words(row.ground_truth)
    # What is not graded is only compared.
    name_of_truth = "Ground truth" if row.graded else "Reference"
    return Shown(
        title,
        facts,
        {"Prompt": row.prompt, "Response": row.response, name_of_truth: truth},
    )


def _facts(row: GradedCompletion) -> Iterable[str]:
    if "finish_reason" in row.extra:
        yield f"finish reason {row.extra['finish_reason']}"
    if row.entropy is not None:
        yield f"entropy {row.entropy:.3f}"
    for name in BREAKDOWNS:
        if name in row.extra.get("metadata", {}):
            yield f"{name} {row.extra['metadata'][name]}"
