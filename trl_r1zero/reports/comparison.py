"""The report of an experiment: groups of runs side by side, as Markdown, HTML, figures and JSON.

The primary outcome is the last validation of each run; picking each run's best one would favour
whoever is validated more often. The mean of the validation curve stands beside it, which is less
noisy. Variants are compared with the baseline seed by seed (see `statistics`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.markdown import inline, table, wrapped
from trl_r1zero.evaluation.pages import Page, Picture, Section, Table, as_html, as_markdown

from .compared import ComparedRun, Difference, Group, Validation, differences_to, read_groups
from .comparison_plots import TRAINING_PANELS, plot_training, plot_validation
from .findings import about_comparisons, about_ends, interval_text, verdict
from .grouping import differing_settings, shown_setting
from .responses import responses_over_time

__all__ = ["write_comparison"]

REPORT_FILE, HTML_FILE, RESULTS_FILE = "report.md", "report.html", "results.json"
VALIDATION_FIGURE, TRAINING_FIGURE = "validation.png", "training.png"

_SHARE = "{:.3f}".format
_SIGNED = "{:+.3f}".format
_NUMBER = "{:.3g}".format
_MAX_CARDS = 6
_TERMINAL_COLUMNS = ("group", "runs", "first", "last", "95% interval", "best", "minutes")
# What else the table of training shows: means over the last tenth of the updates.
_TRAINING_METRICS = {metric: title for metric, (title, _, _) in TRAINING_PANELS.items()} | {
    "loss": "Loss"
}


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
        groups: Label of a variant -> its run folders, one for each seed. Runs of GRPO, expert
            iteration, SFT or DPO, compared by accuracy, or of instruction tuning, compared by loss;
            all of one kind.
        output_dir: Is made if need be; files of the same names are overwritten.
        title: Heading of the report.
        question: What the experiment asks; shown first.
        baseline: Label of the group that the others are compared with; the first by default.
        setup: Sentences on how it was run.
        problems: Sentences on runs that failed or are missing.

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
    report = _Report(found, base, [*problems, *left_out])

    output_dir.mkdir(parents=True, exist_ok=True)
    plot_validation(found, output_dir / VALIDATION_FIGURE, report.outcome)
    has_training = plot_training(found, output_dir / TRAINING_FIGURE)
    if not has_training:
        (output_dir / TRAINING_FIGURE).unlink(missing_ok=True)  # of an earlier report
    page = report.page(title, question, setup, output_dir, has_training)
    results = report.results(title, question)
    (output_dir / RESULTS_FILE).write_text(
        json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    (output_dir / REPORT_FILE).write_text(as_markdown(page), encoding="utf-8")
    (output_dir / HTML_FILE).write_text(as_html(page), encoding="utf-8")
    return report.terminal_text(title, question)


class _Report:
    """Tables and sentences of one comparison."""

    def __init__(
        self, groups: Sequence[Group], baseline: Group | None, problems: Sequence[str]
    ) -> None:
        self.groups = groups
        self.baseline = baseline
        self.differences = differences_to(baseline, groups) if baseline is not None else []
        run = groups[0].runs[0].run
        self.step_name, self.kind = run.step_name, run.kind
        self.outcome = self.kind.best.removeprefix("eval_")
        self.problems = [*problems, *self._problems_of_runs()]

    # Sentences

    def _problems_of_runs(self) -> list[str]:
        problems = [
            f"{run.shown} ({group.label}): {note}."
            for group in self.groups
            for run in group.runs
            for note in run.notes
        ]
        for group in self.groups:
            names = differing_settings([run.run for run in group.runs])
            if names:
                problems.append(
                    f"The runs of {group.label} differ in more than their seed: {', '.join(names)}."
                )
        return problems

    def findings(self) -> list[str]:
        """The answer, in sentences."""
        if self.baseline is None:
            return ["The baseline has no run to compare with, so there are no differences."]
        if not self.differences:
            return ["There is one group, so there is nothing to compare it with."]
        number = len(self.differences)
        return [
            f"{self.outcome.capitalize()} of the last validation, compared with "
            f"{self.baseline.label} seed by seed:",
            *(f"{d.label}: {verdict(d, number)}" for d in self.differences),
            *about_comparisons(self.differences),
            *about_ends(self.groups),
        ]

    # Tables

    def main_table(self) -> Table:
        """One row a group."""
        header = [
            "group", "runs", self.step_name, "first", "last", "95% interval", "mean of curve",
            "best", "minutes", "tokens",
        ]  # fmt: skip
        rows = []
        for group in self.groups:
            runs = group.complete
            last = [run.last.value for run in runs]
            tokens = [run.last.tokens for run in runs if run.last.tokens is not None]
            rows.append(
                [
                    group.label,
                    group.counts.removesuffix("s").removesuffix(" run"),
                    str(runs[0].last.step),
                    _mean_cell([run.curve[0].value for run in runs]),
                    _mean_cell(last),
                    interval_text(group.interval),
                    _mean_cell([run.mean_over_steps for run in runs]),
                    _mean_cell([run.best.value for run in runs]),
                    f"{mean([run.run.wall_time for run in runs]) / 60:.1f}",
                    f"{mean(tokens):,.0f}" if len(tokens) == len(runs) else "-",
                ]
            )
        return Table(header, rows)

    def difference_table(self) -> Table:
        """One row a variant."""
        header = ["variant", "seeds", "last", "95% interval", "mean of curve", "95% interval",
                  "same runs, over questions"]  # fmt: skip
        rows = []
        for d in self.differences:
            over = "-"
            if d.questions is not None:
                q = d.questions
                over = f"{_SIGNED(q.difference)} ± {_SHARE(q.stderr)} ({q.num_common:,})"
            rows.append(
                [
                    d.label,
                    str(d.last.num_seeds),
                    _or_dash(d.last.mean, _SIGNED),
                    interval_text(d.last.interval),
                    _or_dash(d.curve.mean, _SIGNED),
                    interval_text(d.curve.interval),
                    over,
                ]
            )
        return Table(header, rows)

    def training_table(self) -> Table:
        """Means over the last tenth of the updates: one row a group, one column a metric."""
        metrics = [
            metric
            for metric in _TRAINING_METRICS
            if any(run.training_end(metric) is not None for g in self.groups for run in g.complete)
        ]
        rows = []
        for group in self.groups:
            ends = [[run.training_end(metric) for run in group.complete] for metric in metrics]
            cells = [_mean_cell([v for v in values if v is not None], _NUMBER) for values in ends]
            rows.append([group.label, *cells])
        return Table(["group", *(_TRAINING_METRICS[metric].lower() for metric in metrics)], rows)

    def best_table(self) -> Table:
        """The best checkpoint of each group."""
        pick = max if self.kind.higher_is_better else min
        rows = []
        for group in self.groups:
            run = pick(group.runs, key=lambda run: run.best.value)
            rows.append(
                [
                    group.label,
                    _with_error(run.best),
                    str(run.best.step),
                    "-" if run.seed is None else str(run.seed),
                    run.best_folder or "not kept",
                ]
            )
        return Table(
            ["group", f"best {self.outcome}", self.step_name, "seed", "model"], rows, False
        )

    def runs_table(self) -> Table:
        """One row a run."""
        header = ["group", "seed", "run", self.step_name, "last", "best", "minutes", "what to know"]
        rows = [
            [
                group.label,
                "-" if run.seed is None else str(run.seed),
                run.shown,
                str(run.last.step),
                _with_error(run.last),
                f"{_SHARE(run.best.value)} ({run.best.step})",
                f"{run.run.wall_time / 60:.1f}",
                "; ".join(run.notes),
            ]
            for group in self.groups
            for run in group.runs
        ]
        return Table(header, rows, numeric=False)

    def settings_table(self) -> Table:
        """The settings that differ between groups; those that differ within one are both shown."""
        names = differing_settings([run.run for group in self.groups for run in group.runs])
        rows = [
            [group.label, *(" / ".join(_values(group, name)) for name in names)]
            for group in self.groups
        ]
        return Table(["group", *names], rows if names else [], numeric=False)

    # The whole

    def page(
        self,
        title: str,
        question: str | None,
        setup: Sequence[str],
        folder: Path,
        has_training: bool,
    ) -> Page:
        """Everything, the answer first."""
        page = Page(title=title, cards=self._cards())
        if question:
            page.sections.append(Section("Question", [question]))
        page.sections.append(Section("Findings", self.findings()))
        if self.problems:
            page.sections.append(Section("Problems", self.problems))
        page.sections.append(
            Section(
                "Validation",
                [self._about_main_table()],
                [self.main_table()],
                [Picture(folder / VALIDATION_FIGURE, self._about_validation_figure())],
            )
        )
        if self.differences and self.baseline is not None:
            page.sections.append(
                Section(
                    f"Differences to {self.baseline.label}",
                    [_ABOUT_DIFFERENCES],
                    [self.difference_table()],
                )
            )
        if has_training:
            picture = Picture(folder / TRAINING_FIGURE, _ABOUT_TRAINING_FIGURE)
            page.sections.append(
                Section("Training", [_ABOUT_TRAINING], [self.training_table()], [picture])
            )
        page.sections.append(
            Section("Best checkpoints", [_ABOUT_BEST], [self.best_table()]),
        )
        page.sections.append(Section("Runs", tables=[self.runs_table()]))
        settings = self.settings_table()
        if settings.rows or setup:
            page.sections.append(
                Section("How it was run", list(setup), [settings] if settings.rows else [])
            )
        examples = responses_over_time(self.groups)
        if examples:
            page.sections.append(Section("Answers over time", [_ABOUT_ANSWERS], examples=examples))
        return page

    def _cards(self) -> list[tuple[str, str]]:
        """What is seen first, where there are few groups."""
        if len(self.groups) > _MAX_CARDS:
            return []
        return [
            (
                f"{group.label} ({group.counts})",
                _SHARE(mean([r.last.value for r in group.complete])),
            )
            for group in self.groups
        ]

    def _about_main_table(self) -> str:
        tokens = (
            "response tokens that training sampled"
            if self.groups[0].runs[0].run.step_key in ("grpo_step", "ei_step")
            else "prompt and response tokens that were trained on"
        )
        return (
            f"{self.outcome.capitalize()} on validation, as means over runs ± standard error over "
            "runs, and the 95% interval of the last one by Student's t. Mean of curve: the area "
            "under the validation curve over its length in steps. Best is picked on these very "
            "questions, and so a little optimistic. Minutes: wall-clock of training with its "
            f"validations. Tokens: {tokens}."
        )

    def _about_validation_figure(self) -> str:
        return (
            f"Validation {self.outcome} against steps, wall-clock time and tokens: means over runs "
            "with bands of one standard error; below, the last validation of each run, and means "
            "with 95% intervals."
        )

    def terminal_text(self, title: str, question: str | None) -> str:
        """Findings and the main table."""
        one = self.main_table()
        chosen = [one.header.index(name) for name in _TERMINAL_COLUMNS]
        sentences = [*([question] if question else []), *self.findings(), *self.problems]
        cells = [[inline(row[column]) for column in chosen] for row in one.rows]
        blocks = [[f"# {inline(title)}"], *wrapped(*map(inline, sentences))]
        blocks += [table(_TERMINAL_COLUMNS, cells)]
        return "\n\n".join("\n".join(block) for block in blocks) + "\n"

    def results(self, title: str, question: str | None) -> dict[str, Any]:
        """What the tables and figures of validation are made of, without NaN."""
        names = differing_settings([run.run for group in self.groups for run in group.runs])
        return {
            "title": title,
            "question": question,
            "outcome": self.kind.best,
            "step": self.step_name,
            "baseline": self.baseline.label if self.baseline is not None else None,
            "groups": {
                group.label: {
                    "settings": {name: "/".join(_values(group, name)) for name in names},
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
                    "over_questions": _questions_as_json(d),
                    "outlasts_holm": d.outlasts_holm,
                    "verdict": verdict(d, len(self.differences)),
                }
                for d in self.differences
            },
            "findings": self.findings(),
            "problems": self.problems,
        }


_ABOUT_DIFFERENCES = (
    "Variant less baseline: the mean of the differences of runs with the same seed, and its 95% "
    "interval by Student's t over the seeds. The mean of curve has none where the two were "
    "validated at different steps. Over questions: the same last validations, question "
    "by question, ± standard error over the questions (their number); it says whether other "
    "questions would show the difference between these very runs, not whether other seeds would."
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


def _values(group: Group, name: str) -> list[str]:
    return list(dict.fromkeys(shown_setting(name, r.run.settings.get(name)) for r in group.runs))


def _mean_cell(values: Sequence[float], write: Any = _SHARE) -> str:
    if not values:
        return "-"
    error = standard_error(values)
    return write(mean(values)) + ("" if math.isnan(error) else f" ± {write(error)}")


def _or_dash(value: float, write: Any) -> str:
    return "-" if math.isnan(value) else write(value)


def _with_error(point: Validation) -> str:
    return _SHARE(point.value) + ("" if point.stderr is None else f" ± {_SHARE(point.stderr)}")


def _questions_as_json(difference: Difference) -> dict[str, float] | None:
    paired = difference.questions
    if paired is None or math.isnan(paired.stderr):
        return None
    return {
        "difference": paired.difference,
        "stderr": paired.stderr,
        "num_questions": paired.num_common,
    }


def _run_as_json(run: ComparedRun) -> dict[str, Any]:
    ends = {metric: run.training_end(metric) for metric in _TRAINING_METRICS}
    return {
        "run": run.shown,
        "seed": run.seed,
        "is_short": run.is_short,
        "notes": run.notes,
        "curve": [
            {
                "step": point.step,
                "seconds": point.seconds,
                "tokens": point.tokens,
                "value": point.value,
                "stderr": point.stderr,
            }
            for point in run.curve
        ],
        "last": run.last.value,
        "mean_of_curve": run.mean_over_steps,
        "best": {
            "value": run.best.value,
            "step": run.best.step,
            "model": run.best_folder,
        },
        "wall_seconds": run.run.wall_time,
        "training_end": {metric: end for metric, end in ends.items() if end is not None},
    }
