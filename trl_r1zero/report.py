"""What came of a run: a report from its folder, and curves of several runs.

    python -m trl_r1zero.report RUN_FOLDER                       # report.md, curve.png; prints it
    python -m trl_r1zero.report RUN_FOLDER RUN_FOLDER ... [--output curves.png] [--label_by seed]

Everything is read from the files that the run wrote, so a report can be made while it trains, and
of a run that broke off: what is not there is said, and the rest is shown.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trl_r1zero.data.jsonl import read_jsonl
from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.markdown import quoted, table, wrapped
from trl_r1zero.plots import Line, plot_run, plot_runs, training_lines, validation_lines
from trl_r1zero.trainers.run_folder import read_metrics

REPORT_FILE = "report.md"
CURVE_FILE = "curve.png"

Row = dict[str, Any]  # of a table of generations

# What may lie in a run folder. Everything else there is listed too, without words.
_FILES = {
    REPORT_FILE: "this report, with longer rollouts",
    CURVE_FILE: "its curves",
    "metrics.jsonl": "all metrics, one line for each log",
    "evaluations": "a table of generations for each validation (.md to read, .jsonl for programs)",
    "rollouts": "tables of training rollouts",
    "best": "the model of best validation accuracy",
    "final": "the model at the end",
    "recipe.yaml": "the recipe that this run followed, defaults included",
    "config.json": "all settings of the trainer",
    "environment.json": "versions, commit, command and hardware",
}


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))  # h:mm:ss


_Write = tuple[str, Callable[[float], str]]  # label, how to write the number
_COUNT = "{:.0f}".format
_SHARE = "{:.3f}".format
_LENGTH = "{:.1f}".format
_NUMBER = "{:.3g}".format
# Rows of the tables, by metric.
_VALIDATION_ROWS: dict[str, _Write] = {
    "grpo_step": ("after GRPO step", _COUNT),
    "elapsed_seconds": ("time since the start (h:mm:ss)", _duration),
    "eval_num_examples": ("questions", _COUNT),
    "eval_accuracy": ("accuracy", _SHARE),
    "eval_format_reward": ("format rate", _SHARE),
    "eval_length": ("mean length (tokens)", _LENGTH),
    "eval_length_correct": ("mean length, correct", _LENGTH),
    "eval_length_incorrect": ("mean length, incorrect", _LENGTH),
    "eval_entropy": ("entropy (nats per token)", _SHARE),
    "eval_truncated": ("truncated share", _SHARE),
}
_TRAINING_ROWS: dict[str, _Write] = {
    "reward": ("reward", _SHARE),
    "format_reward": ("format reward", _SHARE),
    "answer_reward": ("answer reward", _SHARE),
    "length/mean": ("mean length (tokens)", _LENGTH),
    "entropy": ("entropy (nats per token)", _SHARE),
    "truncated": ("truncated share", _SHARE),
    "zero_advantage_groups": ("groups without advantage (share)", _SHARE),
    "loss": ("loss", _NUMBER),
    "grad_norm": ("gradient norm", _NUMBER),
    "ratio": ("ratio of policy to sampling policy", _SHARE),
    "clip_fraction": ("clipped tokens (share)", _SHARE),
}
# These are absent where they have no meaning: no such answers, no off-policy updates.
_OPTIONAL = {"eval_length_correct", "eval_length_incorrect", "ratio", "clip_fraction"}


@dataclass
class _Run:
    """What a report is made of."""

    folder: Path

    def __post_init__(self) -> None:
        self.name = self.folder.resolve().name
        self.lines = read_metrics(self.folder)
        self.training = training_lines(self.lines)
        self.validations = validation_lines(self.lines)
        self.wall_time = max((line["elapsed_seconds"] for line in self.lines), default=0.0)

    @property
    def before_after_best(self) -> tuple[Line, Line, Line]:
        """First, last and most accurate validation (the first of equal ones)."""
        best = max(self.validations, key=lambda line: line["eval_accuracy"])
        return self.validations[0], self.validations[-1], best

    def facts(self, *path: str) -> dict[str, Any]:
        """A JSON file of the folder; nothing if the run did not write it."""
        file = self.folder.joinpath(*path)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def generation_files(self) -> list[Path]:
        """Where the generations of the first and the last validation should be."""
        ends = [self.validations[0], self.validations[-1]] if self.validations else []
        folder = self.folder / "evaluations"
        return [folder / f"grpo_step_{line['grpo_step']:05d}.jsonl" for line in ends]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Rows of the first and of the last validation, where both answer the same prompt."""
        files = self.generation_files()
        if not files or not all(file.is_file() for file in files):
            return []
        # Validation takes its questions in the order of the data set; a different number of them
        # (in a resumed run) leaves a common beginning.
        rows = zip(*([row.fields for row in read_jsonl(file)] for file in files), strict=False)
        return [(before, after) for before, after in rows if before["prompt"] == after["prompt"]]


def write_report(run_folder: str | Path) -> str:
    """Write `report.md` and `curve.png` into a run's folder.

    Returns:
        The report for a terminal or a log: the same text, at most 100 columns wide (but for the
        path of the folder), with fewer and shorter rollouts.

    Raises:
        FileNotFoundError: The folder has no `metrics.jsonl`.
    """
    run = _Run(Path(run_folder))
    has_curve = plot_run(run.lines, run.folder / CURVE_FILE, title=run.name)
    (run.folder / REPORT_FILE).write_text(
        _report(run, has_curve, num_pairs=6, characters=2000), encoding="utf-8"
    )
    return _report(run, False, num_pairs=2, characters=500)


def write_curves(
    run_folders: Sequence[str | Path], path_png: str | Path, label_by: str | None = None
) -> str:
    """Draw the validation accuracy of several runs (seeds, say) into one PNG, with their mean.

    Args:
        run_folders: Output folders of runs, each with validations.
        path_png: The figure's file.
        label_by: The setting that names a run, a key of its `config.json` such as `seed`; the
            folder's name by default.

    Returns:
        A Markdown table: for each run the accuracy before, after and at best, and the wall-clock
        time; with several runs also their mean, with the standard error over the runs.

    Raises:
        FileNotFoundError: A folder has no `metrics.jsonl`.
        ValueError: No folder is given, a run has no validation or lacks the setting, or two runs
            have the same label.
    """
    if not run_folders:
        raise ValueError("run_folders is empty; give the output folders of runs")
    runs: dict[str, _Run] = {}
    for folder in run_folders:
        run = _Run(Path(folder))
        setting = None if label_by is None else run.facts("config.json").get(label_by)
        if label_by is not None and setting is None:
            raise ValueError(f"{folder}/config.json has no {label_by!r}; use another label_by")
        label = run.name if label_by is None else f"{label_by} {setting}"
        if label in runs:
            raise ValueError(f"two runs have the label {label!r}; use a label_by that differs")
        if not run.validations:
            raise ValueError(f"{folder} has no validation to draw; leave it out")
        runs[label] = run
    Path(path_png).parent.mkdir(parents=True, exist_ok=True)
    plot_runs({label: run.lines for label, run in runs.items()}, path_png)

    rows = []
    for label, run in runs.items():
        chosen = run.before_after_best
        accuracies = [_metric_cell([line], "eval_accuracy", _SHARE) for line in chosen]
        accuracies[-1] += f" (step {chosen[-1]['grpo_step']})"
        rows.append([label, *accuracies, f"{run.wall_time / 60:.1f}"])
    if len(runs) > 1:
        columns = zip(*(run.before_after_best for run in runs.values()), strict=True)
        values = [_logged(column, "eval_accuracy") for column in columns]
        means = [f"{mean(v):.3f} ± {standard_error(v):.3f}" for v in values]
        minutes = mean([run.wall_time for run in runs.values()]) / 60
        rows.append([f"mean of {len(runs)} runs", *means, f"{minutes:.1f}"])
    return "\n".join(table(["run", "before", "after", "best", "wall minutes"], rows)) + "\n"


def _report(run: _Run, show_curve: bool, *, num_pairs: int, characters: int) -> str:
    pairs = run.pairs()
    blocks = [[f"# Run {run.name}"]]
    environment = run.facts("environment.json")
    if environment:
        versions = ", ".join(f"{name} {v}" for name, v in environment["packages"].items())
        blocks += wrapped(
            f"Started {environment['started']} on {environment['device']} with "
            f"{environment['num_processes']} process(es); commit "
            f"{environment['commit'] or 'unknown'}; {versions}."
        )
    missing = _missing(run)
    if missing:
        blocks += [["## What is missing"], *wrapped(*missing)]
    if show_curve:
        blocks += [[f"![Curves of the run]({CURVE_FILE})"]]
    if run.validations:
        before, after, best = ([line] for line in run.before_after_best)
        columns = {"before" if before[0]["grpo_step"] == 0 else "first": before}
        if len(run.validations) > 1:
            columns |= {"after": after, "best": best}
        metrics = _metrics_table("± standard error", _VALIDATION_ROWS, columns)
        blocks += [["## Validation"], metrics, *_change(run, pairs)]
    if run.training:
        tenth = max(1, len(run.training) // 10)
        columns = {f"first {tenth}": run.training[:tenth], f"last {tenth}": run.training[-tenth:]}
        metrics = _metrics_table("mean of logged updates", _TRAINING_ROWS, columns)
        blocks += [["## Training"], metrics]
    blocks += [["## Wall time"], _time_table(run)]
    if pairs:
        blocks += [["## Rollouts of the same validation questions"]]
    names = ("Before", "After") if len(run.validations) > 1 else ("Validation",)
    for number in _telling(pairs)[:num_pairs]:
        blocks += _rollouts(number, dict(zip(names, pairs[number], strict=False)), characters)
    blocks += _why_wrong([after for _, after in pairs], examples=num_pairs, characters=characters)
    blocks += [["## On disk"], [f"In {run.folder}:"], _files_table(run)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


# Blocks of the report, as lines


def _missing(run: _Run) -> list[str]:
    """What a complete run would have and this one does not."""
    missing = []
    ends = [line for line in run.lines if "loss" in line or "train_runtime" in line]
    # A resumed run may have the summary of the run before it, with further updates behind.
    if not ends or "train_runtime" not in ends[-1]:
        done = max((line["grpo_step"] for line in run.lines if "grpo_step" in line), default=0)
        steps = run.facts("config.json").get("n_grpo_steps", "an unknown number")
        missing.append(f"The end of training: the last GRPO step logged is {done:.0f} of {steps}.")
    if not run.training:
        missing.append("Training: no update was logged.")
    if not run.validations:
        missing.append("Validation: none was logged (eval_every is null, or none was due yet).")
    elif len(run.validations) == 1:
        missing.append("Before and after: there is only one validation.")
    for lines, rows in ((run.training, _TRAINING_ROWS), (run.validations, _VALIDATION_ROWS)):
        absent = [m for m in rows if m not in _OPTIONAL and not _logged(lines, m)]
        if lines and absent:
            why = " (generation with vLLM gives no entropies)" if "eval_entropy" in absent else ""
            missing.append(f"Never logged: {', '.join(absent)}{why}.")
    for file in dict.fromkeys(run.generation_files()):
        if not file.is_file():
            missing.append(f"Rollouts: there is no {file.relative_to(run.folder)}.")
    return missing


def _metrics_table(
    corner: str, rows: Mapping[str, _Write], columns: Mapping[str, Sequence[Line]]
) -> list[str]:
    """The mean of each metric over each column's lines, without metrics that none of them has."""
    cells = [
        [label, *(_metric_cell(lines, metric, write) for lines in columns.values())]
        for metric, (label, write) in rows.items()
        if any(_logged(lines, metric) for lines in columns.values())
    ]
    return table([corner, *columns], cells)


def _metric_cell(lines: Sequence[Line], metric: str, write: Callable[[float], str]) -> str:
    values, errors = _logged(lines, metric), _logged(lines, f"{metric}_stderr")
    text = write(mean(values)) if values else "-"
    return f"{text} ± {write(mean(errors))}" if errors else text


def _change(run: _Run, pairs: Sequence[tuple[Row, Row]]) -> list[list[str]]:
    """From the first to the last validation question by question, in words."""
    if len(run.validations) < 2 or len(pairs) < 2:
        return []
    changes = [(_correct(before), _correct(after)) for before, after in pairs]
    counts = ", ".join(f"{changes.count(kind)} {words}" for kind, words in _KINDS.items())
    gains = [float(after) - float(before) for before, after in changes]
    return wrapped(
        f"Of {len(pairs)} questions {counts}: accuracy changed by {mean(gains):+.3f} ± "
        f"{standard_error(gains):.3f} (standard error of the paired differences). Best is the "
        f"highest of {len(run.validations)} validations, picked on these very questions, and so a "
        "little optimistic."
    )


def _time_table(run: _Run) -> list[str]:
    seconds: dict[str, float] = defaultdict(float)
    step = 0
    for line in run.training:
        # A line has the means over the updates since the line before it.
        updates, step = line["step"] - step, line["step"]
        for metric, value in line.items():
            if metric.startswith("seconds/") and metric != "seconds/step" and value is not None:
                seconds[metric.removeprefix("seconds/").replace("_", " ")] += value * updates
    if run.validations:
        seconds["validation"] = sum(_logged(run.validations, "eval_seconds"))
    total = run.wall_time
    # A device's clock may run a little ahead of the wall clock.
    seconds["rest (optimizer, saving, logging)"] = max(0.0, total - sum(seconds.values()))
    rows = [[p, _duration(s), f"{s / total:.0%}" if total else ""] for p, s in seconds.items()]
    return table(["part", "h:mm:ss", "share"], [*rows, ["total", _duration(total), ""]])


def _rollouts(number: int, answers: Mapping[str, Row], characters: int) -> list[list[str]]:
    """One question and its answers."""
    row = next(iter(answers.values()))
    blocks = [[f"### Question {number}"], ["Prompt:"], quoted(row["prompt"], characters)]
    blocks += [["Ground truth:"], quoted(str(row["ground_truth"]), characters)]
    for when, row in answers.items():
        verdict = "right" if _correct(row) else "wrong"
        facts = f"{verdict}, {row['length']} tokens{', truncated' if row['truncated'] else ''}"
        blocks += [[f"{when} ({facts}):"], quoted(row["response"], characters)]
    return blocks


def _why_wrong(rows: Sequence[Row], *, examples: int, characters: int) -> list[list[str]]:
    """Wrong answers of the last validation by the rule that decided, the most frequent first.

    Only for rewards that name a rule (`trl_r1zero.rewards.explain`, and rows whose grading hung).
    """
    ruled = [row for row in rows if not _correct(row) and row.get("rule")]
    if not ruled:
        return []
    by_kind: dict[str, list[Row]] = {"format reward 0": [], "format reward 1, answer reward 0": []}
    for row in ruled:
        by_kind[list(by_kind)[int(row.get("format_reward", 0.0) > 0)]].append(row)
    counts = [
        [kind, rule, str(count)]
        for kind, of_kind in by_kind.items()
        for rule, count in Counter(row["rule"] for row in of_kind).most_common()
    ]
    blocks = [["## Why answers are wrong (last validation)"], table(["kind", "rule", "n"], counts)]
    for kind, of_kind in by_kind.items():
        if of_kind:
            blocks += [[f"### Examples: {kind}"]]
        for row in of_kind[:examples]:
            blocks += [[f"Ground truth {row['ground_truth']}, rule {row['rule']}:"]]
            blocks += [quoted(row["response"], characters)]
    return blocks


def _files_table(run: _Run) -> list[str]:
    names = {path.name for path in run.folder.iterdir()} | {REPORT_FILE}
    what = {name: "to resume from" for name in names if name.startswith("checkpoint-")} | _FILES
    best = run.facts("best", "best.json")
    if best:
        what["best"] += f" (after GRPO step {best['grpo_step']})"
    order = [name for name in _FILES if name in names] + sorted(names - set(_FILES))
    return table(["name", "what"], [[name, what.get(name, "")] for name in order])


# Rollouts

# (right before, right after) in words, the most telling first.
_KINDS = {
    (False, True): "became right",
    (False, False): "stayed wrong",
    (True, False): "became wrong",
    (True, True): "stayed right",
}


def _correct(row: Row) -> bool:
    return row["answer_reward" if "answer_reward" in row else "reward"] > 0


def _telling(pairs: Sequence[tuple[Row, Row]]) -> list[int]:
    """Indices of pairs: the first of each kind, then the second of each, and so on."""
    by_kind: dict[tuple[bool, bool], list[int]] = {kind: [] for kind in _KINDS}
    for number, (before, after) in enumerate(pairs):
        by_kind[_correct(before), _correct(after)].append(number)
    rounds: Iterable[tuple[int | None, ...]] = zip_longest(*by_kind.values())
    return [number for numbers in rounds for number in numbers if number is not None]


# Text


def _logged(lines: Sequence[Line], metric: str) -> list[float]:
    return [line[metric] for line in lines if line.get(metric) is not None]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m trl_r1zero.report",
        description="One folder: its report. Several: their validation curves in one figure.",
    )
    parser.add_argument("run_folders", nargs="+", metavar="RUN_FOLDER", help="output_dir of a run")
    parser.add_argument("--output", metavar="FILE.png", help="several: the figure [curves.png]")
    parser.add_argument(
        "--label_by", metavar="SETTING", help="several: what names a run, e.g. seed"
    )
    args = parser.parse_args(argv)
    several = len(args.run_folders) > 1
    if not several and (args.output or args.label_by):
        parser.error("--output and --label_by are for several folders; leave them out, or add one")
    try:
        if several:
            path = args.output or "curves.png"
            text = f"{write_curves(args.run_folders, path, args.label_by)}\nCurves: {path}\n"
        else:
            text = write_report(args.run_folders[0])
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(text, end="")


if __name__ == "__main__":
    main()
