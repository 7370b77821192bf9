"""The report of an experiment: groups of runs side by side, as Markdown, HTML, figures and JSON.

The primary outcome is the last validation of each run; picking each run's best one would favour
whoever is validated more often. The mean of the validation curve stands beside it, which is less
noisy. Variants are compared with the baseline seed by seed (see `statistics`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trl_r1zero.evaluation.markdown import inline, table, wrapped
from trl_r1zero.evaluation.pages import Example, Page, Picture, Section, as_html, as_markdown
from trl_r1zero.runs.logged_run import by_change
from trl_r1zero.runs.metrics import GROUP_TRAINING

from . import tables
from .compared import ComparedRun, Difference, Group, Validation, differences_to, read_groups
from .comparison_plots import plot_training, plot_validation
from .report import verdict_of_answer
from .tables import findings, problems_of_runs, verdict

REPORT_FILE, HTML_FILE, RESULTS_FILE = "report.md", "report.html", "results.json"
VALIDATION_FIGURE, TRAINING_FIGURE = "validation.png", "training.png"

_MAX_CARDS = 6
_TERMINAL_COLUMNS = ("group", "runs", "first", "last", "95% interval", "best", "minutes")

_ABOUT_VALIDATION = (
    "{Outcome} on validation, as means over runs ± standard error over runs, and the 95% interval "
    "of the last one by Student's t. Mean of curve: the area under the validation curve over its "
    "length in steps. Best is picked on these very questions, and so a little optimistic. Minutes: "
    "wall-clock of training with its validations. Tokens: {tokens}. The last column, where these "
    "are known, is at as many tokens as the run with the fewest had: evenly between validations."
)
_ABOUT_VALIDATION_FIGURE = (
    "Validation {outcome} against steps, wall-clock time and tokens: means over runs with bands of "
    "one standard error; below, the last validation of each run, and means with 95% intervals."
)
_ABOUT_DIFFERENCES = (
    "Variant less baseline: the mean of the differences of runs with the same seed, and its 95% "
    "interval by Student's t over the seeds. The mean of curve has none where the two were "
    "validated at different steps, equal tokens none where they are not known. Over questions: the "
    "same last validations, question by question, ± standard error over the questions (their "
    "number); it says whether other questions would show the difference between these very runs, "
    "not whether other seeds would."
)
_ABOUT_TRAINING = "Means over the last tenth of the logged updates, ± standard error over runs."
_ABOUT_TRAINING_FIGURE = (
    "Training metrics against steps: means over runs with bands of one standard error. Curves of "
    "many steps are drawn as means of consecutive ones."
)
_ABOUT_BEST = (
    "The best validation of all of a group's runs. It is the highest of many, picked on the "
    "questions that it is measured on, and so optimistic: evaluate it on others before quoting it."
)
_ABOUT_ANSWERS = (
    "Two validation questions of one run of each group, and its answers as training goes on: where "
    "there are such, one that became right and one that stayed wrong."
)


def write_comparison(
    groups: Mapping[str, Sequence[Path]],
    output_dir: Path,
    *,
    title: str,
    question: str | None = None,
    baseline: str | None = None,
    setup: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> str:
    """Compare groups of runs, and write `report.md`, `report.html`, figures and `results.json`.

    Args:
        groups: Label of a variant -> its run folders, one for each seed; all runs are of one kind,
            and are compared by accuracy, or by loss in instruction tuning.
        output_dir: Is made if need be; files of the same names are overwritten.
        title: Heading of the report; `question`: what the experiment asks, shown first.
        baseline: Label of the group that the others are compared with; the first by default.
        setup: Sentences on how it was run; `problems`: on runs that failed or are missing.

    Returns:
        Findings and the main table, for a terminal.

    Raises:
        FileNotFoundError: A folder has no `metrics.jsonl`.
        ValueError: There is no run with a validation, runs are of different kinds, a group has a
            seed twice, or no group has the baseline's label.
    """
    if baseline is not None and baseline not in groups:
        raise ValueError(f"baseline: got {baseline!r}, but the groups are {sorted(groups)}")
    found, left_out = read_groups(groups)
    wanted = baseline if baseline is not None else next(iter(groups))
    base = next((group for group in found if group.label == wanted), None)
    all_problems = [*problems, *left_out, *problems_of_runs(found)]
    comparison = _Comparison(title, question, setup, found, base, all_problems)
    output_dir.mkdir(parents=True, exist_ok=True)
    page = comparison.page(output_dir)
    (output_dir / RESULTS_FILE).write_text(
        json.dumps(comparison.results(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (output_dir / REPORT_FILE).write_text(as_markdown(page), encoding="utf-8")
    (output_dir / HTML_FILE).write_text(as_html(page), encoding="utf-8")
    return comparison.terminal_text()


@dataclass
class _Comparison:
    title: str
    question: str | None
    setup: Sequence[str]
    groups: Sequence[Group]
    baseline: Group | None
    problems: Sequence[str]

    def __post_init__(self) -> None:
        self.kind = self.groups[0].runs[0].kind
        self.outcome = self.kind.best.removeprefix("eval_")

    @cached_property
    def differences(self) -> list[Difference]:
        return [] if self.baseline is None else differences_to(self.baseline, self.groups)

    @cached_property
    def findings(self) -> list[str]:
        return findings(self.groups, self.baseline, self.differences, self.outcome)

    def page(self, folder: Path) -> Page:
        """Everything, the answer first; draws the figures."""
        sections = [Section("Question", [self.question])] if self.question else []
        sections.append(Section("Findings", self.findings))
        if self.problems:
            sections.append(Section("Problems", self.problems))
        sections.append(self._validation_section(folder / VALIDATION_FIGURE))
        if self.differences and self.baseline is not None:
            heading = f"Differences to {self.baseline.label}"
            differences = tables.difference_table(self.differences)
            sections.append(Section(heading, [_ABOUT_DIFFERENCES], [differences]))
        path = folder / TRAINING_FIGURE
        if plot_training(self.groups, path):
            picture = Picture(path, _ABOUT_TRAINING_FIGURE)
            training = tables.training_table(self.groups)
            sections.append(Section("Training", [_ABOUT_TRAINING], [training], [picture]))
        else:
            path.unlink(missing_ok=True)  # of an earlier report
        best = tables.best_table(self.groups)
        sections.append(Section("Best checkpoints", [_ABOUT_BEST], [best]))
        sections.append(Section("Runs", tables=[tables.runs_table(self.groups)]))
        settings = tables.settings_table(self.groups)
        if settings.rows or self.setup:
            shown = [settings] if settings.rows else []
            sections.append(Section("How it was run", list(self.setup), shown))
        if examples := [one for group in self.groups for one in _answers_of(group)]:
            sections.append(Section("Answers over time", [_ABOUT_ANSWERS], examples=examples))
        few = self.groups if len(self.groups) <= _MAX_CARDS else []
        cards = [(group.name, f"{group.mean_last:.3f}") for group in few]
        return Page(title=self.title, cards=cards, sections=sections)

    def _validation_section(self, figure: Path) -> Section:
        plot_validation(self.groups, figure, self.outcome)
        tokens = (
            "response tokens that training sampled"
            if self.kind.samples_training
            else "prompt and response tokens that were trained on"
        )
        about = _ABOUT_VALIDATION.format(Outcome=self.outcome.capitalize(), tokens=tokens)
        caption = _ABOUT_VALIDATION_FIGURE.format(outcome=self.outcome)
        main_table = tables.main_table(self.groups)
        return Section("Validation", [about], [main_table], [Picture(figure, caption)])

    def terminal_text(self) -> str:
        """Findings and the main table."""
        one = tables.main_table(self.groups)
        chosen = [one.header.index(name) for name in _TERMINAL_COLUMNS]
        cells = [[inline(row[column]) for column in chosen] for row in one.rows]
        sentences = [*([self.question] if self.question else []), *self.findings, *self.problems]
        blocks = [[f"# {inline(self.title)}"], *wrapped(*map(inline, sentences))]
        blocks += [table(_TERMINAL_COLUMNS, cells)]
        return "\n\n".join("\n".join(block) for block in blocks) + "\n"

    def results(self) -> dict[str, Any]:
        """What the tables and figures of validation are made of, without NaN."""
        return {
            "title": self.title,
            "question": self.question,
            "outcome": self.kind.best,
            "step": self.kind.step_name,
            "baseline": self.baseline.label if self.baseline is not None else None,
            "groups": {
                group.label: {
                    "settings": tables.differing_values(group, self.groups, "/"),
                    "mean_last": group.mean_last,
                    "interval": None if len(group.complete) < 2 else list(group.interval),
                    "runs": [_run_as_json(run) for run in group.runs],
                }
                for group in self.groups
            },
            "differences": {
                d.label: {
                    "last": d.last.as_json(),
                    "mean_of_curve": d.curve.as_json(),
                    "at_equal_tokens": d.at_equal_tokens.as_json(),
                    "over_questions": {
                        "difference": d.questions.difference,
                        "stderr": d.questions.stderr,
                        "num_questions": d.questions.num_common,
                    }
                    if d.questions is not None and not math.isnan(d.questions.stderr)
                    else None,
                    "outlasts_holm": d.outlasts_holm,
                    "verdict": verdict(d, len(self.differences)),
                }
                for d in self.differences
            },
            "findings": self.findings,
            "problems": self.problems,
        }


def _run_as_json(run: ComparedRun) -> dict[str, Any]:
    ends = {metric: run.training_end(metric) for metric in GROUP_TRAINING}
    of_point = ("step", "seconds", "tokens", "value", "stderr")
    return {
        "run": run.shown,
        "seed": run.seed,
        "is_short": run.is_short,
        "notes": run.notes,
        "curve": [{name: getattr(point, name) for name in of_point} for point in run.curve],
        "last": run.last.value,
        "mean_of_curve": run.mean_over_steps,
        "at_equal_tokens": run.at_equal_tokens,
        "best": {"value": run.best.value, "step": run.best.step, "model": run.best_folder},
        "wall_seconds": run.wall_time,
        "training_end": {metric: end for metric, end in ends.items() if end is not None},
    }


# Answers over time

NUM_QUESTIONS = 2
MAX_TIMES = 6


def _answers_of(group: Group) -> list[Example]:
    """Of a group's median run two questions, with its answers at up to six validations: the first
    ones of `by_change`, from the first to the last of these. None without tables of generations."""
    run = group.median_run
    existing = [point for point in run.curve if run.generation_file(point.line).is_file()]
    tables = {point.step: run.answers(point.line) for point in _spread(existing)}
    # A different number of questions (in a resumed run) leaves a common beginning.
    together = zip(*tables.values(), strict=False)
    asked = [rows for rows in together if len({row["prompt"] for row in rows}) == 1]
    shown = []
    for number in by_change([(rows[0], rows[-1]) for rows in asked])[:NUM_QUESTIONS]:
        first = asked[number][0]
        texts = {"Prompt": first["prompt"], "Ground truth": str(first["ground_truth"])}
        for step, row in zip(tables, asked[number], strict=True):
            when = f"After {run.kind.step_name} {step} ({verdict_of_answer(row)})"
            texts[when] = row["response"]
        about = [f"run {run.shown}", f"seed {run.seed}", "the group's median run at the end"]
        shown.append(Example(f"{group.label}: question {number}", about, texts))
    return shown


def _spread(points: list[Validation]) -> list[Validation]:
    """At most `MAX_TIMES` of them, the first and the last, and evenly between."""
    if len(points) <= MAX_TIMES:
        return points
    return [points[round(i * (len(points) - 1) / (MAX_TIMES - 1))] for i in range(MAX_TIMES)]
