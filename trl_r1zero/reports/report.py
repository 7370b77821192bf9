"""What came of one run: a report from its folder. `trl-r1zero report RUN` writes and prints it.

The run may be of any trainer of this library; its metrics tell which.
Everything is read from the files that the run wrote, so a report can be made while it trains, and
of a run that broke off: what is not there is said, and the rest is shown.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.markdown import quoted, table, wrapped
from trl_r1zero.reports.plots import plot_run
from trl_r1zero.rewards import is_correct
from trl_r1zero.runs.logged_run import (
    CHANGES,
    Line,
    LoggedRun,
    Row,
    logged,
    metric_cell,
    rollout_pass_metric,
    telling,
)
from trl_r1zero.trainers.timing import PARTS_OF_GENERATION

REPORT_FILE = "report.md"
CURVE_FILE = "curve.png"

# What may lie in a run folder. Everything else there is listed too, without words.
_FILES = {
    REPORT_FILE: "this report, with longer rollouts",
    CURVE_FILE: "its curves",
    "metrics.jsonl": "all metrics, one line for each log",
    "evaluations": "a table of generations for each validation (.md to read, .jsonl for programs)",
    "rollouts": "tables of training rollouts",
    "expert_iteration": "kept rollouts of each EI step",
    "reference": "pairs as tokens, and the reference's log-probabilities",
    "data_report.md": "what the data doctor saw",
    "data_report.json": "the same for programs",
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
# Rows of the tables, by metric. The validation's begin with the step, whose key is the run's.
_TIME_ROW: dict[str, _Write] = {"elapsed_seconds": ("time since the start (h:mm:ss)", _duration)}
_VALIDATION_ROWS: dict[str, _Write] = {
    **_TIME_ROW,
    "eval_num_examples": ("questions", _COUNT),
    "eval_accuracy": ("accuracy", _SHARE),
    "eval_format_reward": ("format rate", _SHARE),
    "eval_length": ("mean length (tokens)", _LENGTH),
    "eval_length_correct": ("mean length, correct", _LENGTH),
    "eval_length_incorrect": ("mean length, incorrect", _LENGTH),
    "eval_entropy": ("entropy (nats per token)", _SHARE),
    "eval_truncated": ("truncated share", _SHARE),
}
_RESPONSE_ROWS: dict[str, _Write] = {
    "length/mean": ("mean length (tokens)", _LENGTH),
    "entropy": ("entropy (nats per token)", _SHARE),
}
_UPDATE_ROWS: dict[str, _Write] = {
    "loss": ("loss", _NUMBER),
    "grad_norm": ("gradient norm", _NUMBER),
}
_GRPO_ROWS: dict[str, _Write] = {
    "reward": ("reward", _SHARE),
    "format_reward": ("format reward", _SHARE),
    "answer_reward": ("answer reward", _SHARE),
    **_RESPONSE_ROWS,
    "truncated": ("truncated share", _SHARE),
    "zero_advantage_groups": ("groups without advantage (share)", _SHARE),
    **_UPDATE_ROWS,
    "ratio": ("ratio of policy to sampling policy", _SHARE),
    "clip_fraction": ("clipped tokens (share)", _SHARE),
}
_SFT_ROWS: dict[str, _Write] = {
    "nll": ("negative log-likelihood (nats per token)", _SHARE),
    **_RESPONSE_ROWS,
    **_UPDATE_ROWS,
    "learning_rate": ("learning rate", _NUMBER),
    "tokens_per_second": ("tokens per second", _COUNT),
}
_DPO_ROWS: dict[str, _Write] = {
    "accuracy": ("accuracy (implicit reward)", _SHARE),
    "log_prob_accuracy": ("accuracy (log-probability)", _SHARE),
    "margin": ("margin (nats)", _SHARE),
    "chosen_reward": ("implicit reward, chosen (nats)", _SHARE),
    "rejected_reward": ("implicit reward, rejected (nats)", _SHARE),
}
_TUNING_ROWS: dict[str, _Write] = {
    **_UPDATE_ROWS,
    "learning_rate": ("learning rate", _NUMBER),
}
_TRAINING_ROWS = {
    "grpo_step": _GRPO_ROWS,
    "ei_step": _SFT_ROWS,
    "dpo_step": {**_DPO_ROWS, **_UPDATE_ROWS, "tokens_per_second": ("tokens per second", _COUNT)},
    "tuning_step": _TUNING_ROWS,
    "train_step": _SFT_ROWS,
}
_VALIDATION_ROWS_OF = {
    "grpo_step": _VALIDATION_ROWS,
    "ei_step": _VALIDATION_ROWS,
    "dpo_step": {
        **_TIME_ROW,
        "eval_num_pairs": ("pairs", _COUNT),
        **{f"eval_{name}": row for name, row in _DPO_ROWS.items()},
        "eval_loss": ("loss", _SHARE),
    },
    "tuning_step": {**_TIME_ROW, "eval_loss": ("loss (nats per token)", _SHARE)},
    "train_step": _VALIDATION_ROWS,
}
# Columns of the table of an EI run's rollouts; pass@k, whose k is the run's, goes with accuracy.
_ROLLOUT_COLUMNS: dict[str, _Write] = {
    "rollout_accuracy": ("accuracy", _SHARE),
    "rollout_kept": ("kept", _COUNT),
    "rollout_kept_share": ("share", _SHARE),
    "rollout_length": ("length", _LENGTH),
    "rollout_entropy": ("entropy", _SHARE),
}
# Seconds of these are in those of other parts.
_NOT_ADDED = {"step", *PARTS_OF_GENERATION}
# These are absent where they have no meaning: no such answers, no off-policy updates.
_OPTIONAL = {"eval_length_correct", "eval_length_incorrect", "ratio", "clip_fraction"}


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
    has_curve = plot_run(run.lines, run.folder / CURVE_FILE, title=run.name)
    (run.folder / REPORT_FILE).write_text(
        _report(run, has_curve, num_pairs=6, characters=2000), encoding="utf-8"
    )
    return _report(run, False, num_pairs=2, characters=500)


def _report(run: LoggedRun, show_curve: bool, *, num_pairs: int, characters: int) -> str:
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
        columns = {"before" if before[0][run.step_key] == 0 else "first": before}
        if len(run.validations) > 1:
            columns |= {"after": after, "best": best}
        rows = {
            run.step_key: (f"after {run.step_name}", _COUNT),
            **_VALIDATION_ROWS_OF[run.step_key],
        }
        metrics = _metrics_table("± standard error", rows, columns)
        blocks += [["## Validation"], metrics, *_change(run, pairs)]
    if run.training:
        tenth = max(1, len(run.training) // 10)
        columns = {f"first {tenth}": run.training[:tenth], f"last {tenth}": run.training[-tenth:]}
        rows = _TRAINING_ROWS[run.step_key]
        blocks += [["## Training"], _metrics_table("mean of logged updates", rows, columns)]
    if run.rollouts:
        blocks += [["## Rollouts"], *_rollouts_of_steps(run)]
    blocks += [["## Wall time"], _time_table(run)]
    if pairs:
        blocks += [["## Rollouts of the same validation questions"]]
    names = ("Before", "After") if len(run.validations) > 1 else ("Validation",)
    for number in telling(pairs)[:num_pairs]:
        blocks += _rollouts(number, dict(zip(names, pairs[number], strict=False)), characters)
    blocks += _why_wrong([after for _, after in pairs], examples=num_pairs, characters=characters)
    blocks += [["## On disk"], [f"In {run.folder}:"], _files_table(run)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


# Blocks of the report, as lines


def _missing(run: LoggedRun) -> list[str]:
    """What a complete run would have and this one does not."""
    missing = []
    marks = {"loss", "rollout_accuracy", "train_runtime"}
    ends = [line for line in run.lines if marks & line.keys()]
    # A resumed run may have the summary of the run before it, with further work behind.
    if not ends or "train_runtime" not in ends[-1]:
        done = max(logged(run.lines, run.step_key), default=0)
        steps = run.planned_steps or "an unknown number"
        missing.append(
            f"The end of training: the last {run.step_name} logged is {done:.0f} of {steps}."
        )
    if not run.training:
        missing.append("Training: no update was logged.")
    if not run.validations:
        missing.append("Validation: none was logged (eval_every is null, or none was due yet).")
    elif len(run.validations) == 1:
        missing.append("Before and after: there is only one validation.")
    expected = (
        (run.training, _TRAINING_ROWS[run.step_key]),
        (run.rollouts, _ROLLOUT_COLUMNS),
        (run.validations, _VALIDATION_ROWS_OF[run.step_key]),
    )
    for lines, rows in expected:
        absent = [m for m in rows if m not in _OPTIONAL and not logged(lines, m)]
        if lines and absent:
            missing.append(f"Never logged: {', '.join(absent)}.")
    for file in dict.fromkeys(run.generation_files()):
        if not file.is_file():
            missing.append(f"Rollouts: there is no {file.relative_to(run.folder)}.")
    return missing


def _metrics_table(
    corner: str, rows: Mapping[str, _Write], columns: Mapping[str, Sequence[Line]]
) -> list[str]:
    """The mean of each metric over each column's lines, without metrics that none of them has."""
    cells = [
        [label, *(metric_cell(lines, metric, write) for lines in columns.values())]
        for metric, (label, write) in rows.items()
        if any(logged(lines, metric) for lines in columns.values())
    ]
    return table([corner, *columns], cells)


def _rollouts_of_steps(run: LoggedRun) -> list[list[str]]:
    """One row for each EI step, about what was sampled before its updates."""
    pass_metric = rollout_pass_metric(run.rollouts)
    columns = {"rollout_accuracy": _ROLLOUT_COLUMNS["rollout_accuracy"]}
    if pass_metric is not None:
        columns[pass_metric] = (pass_metric.removeprefix("rollout_"), _SHARE)
    columns |= _ROLLOUT_COLUMNS
    # A resumed run may have sampled a step's rollouts anew: the last ones were trained on.
    of_step = {line["ei_step"]: line for line in run.rollouts}
    rows = [
        [str(step), _num_questions(line, pass_metric)]
        + [metric_cell([line], metric, write) for metric, (_, write) in columns.items()]
        for step, line in sorted(of_step.items())
    ]
    header = [run.step_name, "questions", *(label for label, _ in columns.values())]
    note = "Sampled before the step's updates. Kept ones are trained on; share: of all rollouts."
    return [*wrapped(note), table(header, rows)]


def _num_questions(line: Line, pass_metric: str | None) -> str:
    """How many questions an EI step asked; if that was not logged, from what was kept."""
    number, share = line.get("rollout_num_examples"), line.get("rollout_kept_share")
    if number is None and share and pass_metric is not None:
        number = line["rollout_kept"] / share / int(pass_metric.rpartition("@")[2])
    return "-" if number is None else _COUNT(number)


def _change(run: LoggedRun, pairs: Sequence[tuple[Row, Row]]) -> list[list[str]]:
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


def _time_table(run: LoggedRun) -> list[str]:
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
        seconds["validation"] = sum(ours or theirs)
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
        verdict = "right" if is_correct(row) else "wrong"
        facts = f"{verdict}, {row['length']} tokens{', truncated' if row['truncated'] else ''}"
        blocks += [[f"{when} ({facts}):"], quoted(row["response"], characters)]
    return blocks


def _why_wrong(rows: Sequence[Row], *, examples: int, characters: int) -> list[list[str]]:
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
            blocks += [[f"Ground truth {row['ground_truth']}, rule {row['rule']}:"]]
            blocks += [quoted(row["response"], characters)]
    return blocks


def _files_table(run: LoggedRun) -> list[str]:
    names = {path.name for path in run.folder.iterdir()} | {REPORT_FILE}
    what = {name: "to resume from" for name in names if name.startswith("checkpoint-")} | _FILES
    best = run.facts("best", "best.json")
    if best:
        what["best"] += f" (after {run.step_name} {best[run.step_key]})"
    order = [name for name in _FILES if name in names] + sorted(names - set(_FILES))
    return table(["name", "what"], [[name, what.get(name, "")] for name in order])
