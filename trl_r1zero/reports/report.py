"""What came of one run: a report from its folder. `trl-r1zero report RUN` writes and prints it.

The run may be of any trainer of this library; its metrics tell which.
Everything is read from the files that the run wrote, so a report can be made while it trains, and
of a run that broke off: what is not there is said, and the rest is shown.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from trl_r1zero.common.folder_lock import LOCK_FILE
from trl_r1zero.common.run_files import FILTER_FILE, SKIPPED_FILE
from trl_r1zero.data.bad_rows import skipped_in_words
from trl_r1zero.evaluation.markdown import quoted, table, wrapped
from trl_r1zero.evaluation.metrics import mean, standard_error
from trl_r1zero.reports.plots import plot_run
from trl_r1zero.rewards import is_correct, lenient_opinion
from trl_r1zero.runs.logged_run import CHANGES, Line, LoggedRun, Row, by_change, logged
from trl_r1zero.runs.metrics import DURATION, OPTIONAL, ROLLOUT_COLUMNS, Rows
from trl_r1zero.trainers.timing import PARTS_OF_GENERATION

REPORT_FILE = "report.md"
CURVE_FILE = "curve.png"

Block = list[str]  # lines; a blank line stands between blocks

# What may lie in a run folder. Everything else there is listed too, without words.
_FILES = {
    REPORT_FILE: "this report, with longer rollouts",
    CURVE_FILE: "its curves",
    "README.md": "the card of the model",
    "index.html": "a page of curves, settings and answers",
    "metrics.jsonl": "all metrics, one line for each log",
    "evaluations": "a table of generations for each validation (.md to read, .jsonl for programs)",
    "rollouts": "tables of training rollouts",
    "expert_iteration": "kept rollouts of each EI step",
    "reference": "pairs as tokens, and the reference's log-probabilities",
    "data_report.md": "what the data doctor saw",
    "data_report.json": "the same for programs",
    SKIPPED_FILE: "rows that were left out of the data",
    FILTER_FILE: "what the difficulty filter left of the training problems",
    "best": "the model of best validation accuracy",
    "final": "the model at the end",
    "recipe.yaml": "the recipe that this run followed, defaults included",
    "history.jsonl": "settings that changed where the run went on",
    "config.json": "all settings of the trainer",
    "environment.json": "versions, commit, command and hardware",
}
# Seconds of these are in those of other parts.
_NOT_ADDED = {"step", *PARTS_OF_GENERATION}


def write_report(run_folder: str | Path) -> str:
    """Write `report.md` and `curve.png` into a run's folder.

    Returns:
        The report for a terminal or a log: the same text, at most 100 columns wide (but for the
        path of the folder), with fewer and shorter rollouts.

    Raises:
        FileNotFoundError: The folder has no `metrics.jsonl`.
        ValueError: Its lines are of several kinds of runs.
    """
    run = LoggedRun(Path(run_folder))
    has_curve = plot_run(run, run.folder / CURVE_FILE, title=run.name)
    (run.folder / REPORT_FILE).write_text(
        _report(run, has_curve, num_pairs=6, characters=2000), encoding="utf-8"
    )
    return short_report(run)


def short_report(run: LoggedRun) -> str:
    """What `write_report` returns."""
    return _report(run, False, num_pairs=2, characters=500)


def _report(run: LoggedRun, show_curve: bool, *, num_pairs: int, characters: int) -> str:
    pairs = run.pairs()
    blocks = [[f"# Run {run.name}"], *_environment(run)]
    if missing := _missing(run):
        blocks += [["## What is missing"], *wrapped(*missing)]
    if show_curve:
        blocks += [[f"![Curves of the run]({CURVE_FILE})"]]
    if run.validations:
        blocks += [["## Validation"], _validation_table(run), *_change(run, pairs)]
    if run.training:
        tenth = max(1, len(run.training) // 10)
        columns = {f"first {tenth}": run.training[:tenth], f"last {tenth}": run.training[-tenth:]}
        training = lines_table("mean of logged updates", run.kind.training_rows, columns)
        blocks += [["## Training"], training]
    if run.rollouts:
        blocks += [["## Rollouts"], *_rollouts_of_steps(run)]
    blocks += [["## Wall time"], _time_table(run)]
    if pairs:
        blocks += [["## Rollouts of the same validation questions"]]
    names = ("Before", "After") if len(run.validations) > 1 else ("Validation",)
    for number in by_change(pairs)[:num_pairs]:
        blocks += _rollouts(number, dict(zip(names, pairs[number], strict=False)), characters)
    blocks += _why_wrong([after for _, after in pairs], examples=num_pairs, characters=characters)
    blocks += [["## On disk"], [f"In {run.folder}:"], _files_table(run)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _environment(run: LoggedRun) -> list[Block]:
    facts = run.facts("environment.json")
    if not facts:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    skipped = run.facts(SKIPPED_FILE) or {}
    return wrapped(
        f"Started {facts['started']} on {facts['device']} with {facts['num_processes']} "
        f"process(es); commit {facts['commit'] or 'unknown'}; {versions}.",
        *(f"Of {key}: {skipped_in_words(rows)}." for key, rows in skipped.items()),
        *([f"The {kept['in_words']}."] if (kept := run.facts(FILTER_FILE)) else []),
    )


def _missing(run: LoggedRun) -> list[str]:
    """What a complete run would have and this one does not."""
    missing = []
    marks = {"loss", "rollout_accuracy", "train_runtime"}
    ends = [line for line in run.lines if marks & line.keys()]
    # A resumed run may have the summary of the run before it, with further work behind.
    if not ends or "train_runtime" not in ends[-1]:
        done = max(logged(run.lines, run.kind.step_key), default=0)
        steps = run.planned_steps or "an unknown number"
        missing.append(
            f"The end of training: the last {run.kind.step_name} logged is {done:.0f} of {steps}."
        )
    if not run.training:
        missing.append("Training: no update was logged.")
    if not run.validations:
        missing.append("Validation: none was logged (eval_every is null, or none was due yet).")
    elif len(run.validations) == 1:
        missing.append("Before and after: there is only one validation.")
    for lines, rows in (
        (run.training, run.kind.training_rows),
        (run.rollouts, ROLLOUT_COLUMNS),
        (run.validations, run.kind.validation_rows),
    ):
        absent = [m for m in rows if m not in OPTIONAL and not logged(lines, m)]
        if lines and absent:
            missing.append(f"Never logged: {', '.join(absent)}.")
    if run.kind.samples_validation:
        ends = run.validations[:1] + run.validations[1:][-1:]
        files = dict.fromkeys(map(run.generation_file, ends))
        missing += [
            f"Rollouts: there is no {file.relative_to(run.folder)}."
            for file in files
            if not file.is_file()
        ]
    return missing


# Tables


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))  # h:mm:ss


def _metric_cell(lines: Sequence[Line], metric: str, form: str) -> str:
    """A metric's mean over lines, with its mean standard error where one is logged."""
    values, errors = logged(lines, metric), logged(lines, f"{metric}_stderr")
    if not values:
        return "-"
    if form == DURATION:
        return _duration(mean(values))
    return f"{mean(values):{form}}" + (f" ± {mean(errors):{form}}" if errors else "")


def lines_table(corner: str, rows: Rows, columns: Mapping[str, Sequence[Line]]) -> Block:
    """The mean of each metric over each column's lines, without metrics that none of them has."""
    cells = [
        [label, *(_metric_cell(lines, metric, form) for lines in columns.values())]
        for metric, (label, form) in rows.items()
        if any(logged(lines, metric) for lines in columns.values())
    ]
    return table([corner, *columns], cells)


def _validation_table(run: LoggedRun) -> Block:
    before, after, best = ([line] for line in run.before_after_best)
    columns = {"before" if before[0][run.kind.step_key] == 0 else "first": before}
    if len(run.validations) > 1:
        columns |= {"after": after, "best": best}
    steps: Rows = {run.kind.step_key: (f"after {run.kind.step_name}", ".0f")}
    sets: Rows = {
        f"validation/{name}/accuracy": (f"accuracy, {name}", ".3f") for name in run.validation_sets
    }
    return lines_table("± standard error", steps | run.kind.validation_rows | sets, columns)


def _rollouts_of_steps(run: LoggedRun) -> list[Block]:
    """One row for each EI step, about what was sampled before its updates."""
    columns = list(ROLLOUT_COLUMNS.items())
    if run.largest_k is not None:
        k = run.largest_k
        columns.insert(1, (f"rollout_pass@{k}", (f"pass@{k}", ".3f")))
    rows = [
        [str(step), _num_questions(line, run.largest_k)]
        + [_metric_cell([line], metric, form) for metric, (_, form) in columns]
        for step, line in sorted(run.rollouts_of_steps.items())
    ]
    header = [run.kind.step_name, "questions", *(label for _, (label, _) in columns)]
    note = "Sampled before the step's updates. Kept ones are trained on; share: of all rollouts."
    return [*wrapped(note), table(header, rows)]


def _num_questions(line: Line, k: int | None) -> str:
    """How many questions an EI step asked; if that was not logged, from what was kept."""
    number, share = line.get("rollout_num_examples"), line.get("rollout_kept_share")
    if number is None and share and k is not None:
        number = line["rollout_kept"] / share / k
    return "-" if number is None else f"{number:.0f}"


def _change(run: LoggedRun, pairs: Sequence[tuple[Row, Row]]) -> list[Block]:
    """From the first to the last validation question by question, in words."""
    if len(run.validations) < 2 or len(pairs) < 2:
        return []
    changes = [(is_correct(before), is_correct(after)) for before, after in pairs]
    counts = ", ".join(f"{changes.count(kind)} {words}" for kind, words in CHANGES.items())
    gains = [float(after) - float(before) for before, after in changes]
    return wrapped(
        f"Of {len(pairs)} questions {counts}: accuracy changed by {mean(gains):+.3f} ± "
        f"{standard_error(gains):.3f} (standard error of the paired differences). Best is the "
        f"highest of {len(run.validations)} validations, picked on these very questions, and so a "
        "little optimistic."
    )


def _time_table(run: LoggedRun) -> Block:
    seconds: dict[str, float] = defaultdict(float)
    step = 0
    for line in run.training:
        # A line has the means over the updates since the line before it.
        updates, step = line["step"] - step, line["step"]
        for metric, value in line.items():
            part = metric.removeprefix("seconds/")
            if part != metric and part not in _NOT_ADDED and value is not None:
                seconds[part.replace("_", " ")] += value * updates
    if run.rollouts:
        seconds["rollouts"] = sum(logged(run.rollouts, "rollout_seconds"))
    if run.validations:
        ours, theirs = (logged(run.validations, f"eval_{name}") for name in ("seconds", "runtime"))
        if of_sets := [f"validation/{name}/seconds" for name in run.validation_sets]:
            ours = [s for metric in of_sets for s in logged(run.validations, metric)]
        seconds["validation"] = sum(ours or theirs)
    total = run.wall_time
    # A device's clock may run a little ahead of the wall clock.
    seconds["rest (optimizer, saving, logging)"] = max(0.0, total - sum(seconds.values()))
    rows = [[p, _duration(s), f"{s / total:.0%}" if total else ""] for p, s in seconds.items()]
    return table(["part", "h:mm:ss", "share"], [*rows, ["total", _duration(total), ""]])


def _files_table(run: LoggedRun) -> Block:
    names = {path.name for path in run.folder.iterdir()} - {LOCK_FILE} | {REPORT_FILE}
    what = {name: "to resume from" for name in names if name.startswith("checkpoint-")} | _FILES
    if best := run.facts("best", "best.json"):
        what["best"] += f" (after {run.kind.step_name} {best[run.kind.step_key]})"
    order = [name for name in _FILES if name in names] + sorted(names - set(_FILES))
    return table(["name", "what"], [[name, what.get(name, "")] for name in order])


# Answers


def verdict_of_answer(row: Row) -> str:
    """`right, 12 tokens, truncated`."""
    cut = ", truncated" if row["truncated"] else ""
    return f"{'right' if is_correct(row) else 'wrong'}, {row['length']} tokens{cut}"


def _rollouts(number: int, answers: Mapping[str, Row], characters: int) -> list[Block]:
    """One question and its answers."""
    row = next(iter(answers.values()))
    blocks = [[f"### Question {number}"], ["Prompt:"], quoted(row["prompt"], characters)]
    blocks += [["Ground truth:"], quoted(str(row["ground_truth"]), characters)]
    for when, row in answers.items():
        blocks += [[f"{when} ({verdict_of_answer(row)}):"], quoted(row["response"], characters)]
    return blocks


def _why_wrong(rows: Sequence[Row], *, examples: int, characters: int) -> list[Block]:
    """Wrong answers of the last validation by the rule that decided, the most frequent first.

    Only for rewards that name a rule (`trl_r1zero.rewards.explain`, and rows whose grading hung).
    """
    ruled = [row for row in rows if not is_correct(row) and row.get("rule")]
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
            opinion = lenient_opinion(row["rule"], row["response"], row["ground_truth"])
            also = f", lenient grader: {opinion}" if opinion else ""
            blocks += [[f"Ground truth {row['ground_truth']}, rule {row['rule']}{also}:"]]
            blocks += [quoted(row["response"], characters)]
    return blocks
