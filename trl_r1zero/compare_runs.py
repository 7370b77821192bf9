"""Several runs side by side: validation curves of single runs, and of groups of seeds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.markdown import table, wrapped
from trl_r1zero.logged_run import Line, LoggedRun, logged, metric_cell
from trl_r1zero.plots import plot_groups, plot_runs

_SHARE = "{:.3f}".format
# A setting of None has no number or name to show. What it means, where it means something:
_NONE_NAMES = {"num_examples": "all"}


def write_curves(
    run_folders: Sequence[str | Path], path_png: str | Path, label_by: str | None = None
) -> str:
    """Draw the validation accuracy of several runs (seeds, say) into one PNG, with their mean.

    Args:
        run_folders: Output folders of runs of one kind, each with validations.
        path_png: The figure's file.
        label_by: The setting that names a run, a key of its `config.json` such as `seed`; the
            folder's name by default.

    Returns:
        A Markdown table: for each run the accuracy before, after and at best, and the wall-clock
        time; with several runs also their mean, with the standard error over the runs.

    Raises:
        FileNotFoundError: A folder has no `metrics.jsonl`.
        ValueError: No folder is given, a run has no validation or lacks the setting, two runs have
            the same label, or runs are of different kinds.
    """
    runs: dict[str, LoggedRun] = {}
    for run in _validated_runs(run_folders):
        setting = None if label_by is None else run.facts("config.json").get(label_by)
        if label_by is not None and setting is None:
            raise ValueError(f"{run.folder}/config.json has no {label_by!r}; use another label_by")
        label = run.name if label_by is None else f"{label_by} {setting}"
        if label in runs:
            raise ValueError(f"two runs have the label {label!r}; use a label_by that differs")
        runs[label] = run
    step_key = _common_step_key(runs.values())
    Path(path_png).parent.mkdir(parents=True, exist_ok=True)
    plot_runs({label: run.lines for label, run in runs.items()}, path_png, step_key)

    rows = []
    for label, run in runs.items():
        chosen = run.before_after_best
        accuracies = [metric_cell([line], "eval_accuracy", _SHARE) for line in chosen]
        accuracies[-1] += f" (step {chosen[-1][step_key]})"
        rows.append([label, *accuracies, f"{run.wall_time / 60:.1f}"])
    if len(runs) > 1:
        rows.append([f"mean of {len(runs)} runs", *_mean_cells(list(runs.values()))])
    return "\n".join(table(["run", "before", "after", "best", "wall minutes"], rows)) + "\n"


def write_groups(
    run_folders: Sequence[str | Path], path_png: str | Path, group_by: str | Sequence[str]
) -> str:
    """Compare groups of runs in one PNG: runs with equal settings are seeds of one group.

    Args:
        run_folders: Output folders of runs of one kind, each with validations.
        path_png: The figure's file.
        group_by: The setting, or settings, whose values make a group: keys of the run's
            `recipe.yaml` or, where that has no such key, of its `config.json`. A value that is
            missing or None is shown as `all` for `num_examples` and as `unset` for any other.

    Returns:
        A Markdown table with one row for each group, numbers ascending and `all` and `unset` last:
        the number of runs; the accuracy before, after and at best, each a mean over the runs with
        its standard error (where there are several); the mean wall-clock time. Below it, which
        groups have runs whose last validations are at different steps, if any have.

    Raises:
        FileNotFoundError: A folder has no `metrics.jsonl`.
        ValueError: No folder or no setting is given, a folder is given twice, no run has a setting,
            a run has no validation, runs are of different kinds, or the runs of a group were never
            validated at the same step.
    """
    settings = [group_by] if isinstance(group_by, str) else list(group_by)
    if not settings:
        raise ValueError("group_by is empty; give a setting that differs between the runs")
    runs = _validated_runs(run_folders)
    for setting in settings:
        if not any(setting in run.settings for run in runs):
            raise ValueError(
                f"no run has the setting {setting!r} in its recipe.yaml or config.json; group by a "
                "key of these files"
            )
    step_key = _common_step_key(runs)
    groups = _grouped(runs, settings)
    for values, members in groups.items():
        if not set.intersection(*({line[step_key] for line in r.validations} for r in members)):
            raise ValueError(
                f"the runs with {' / '.join(settings)} {' / '.join(values)} have no validation at "
                f"the same {members[0].step_name}, so they have no mean curve; compare runs with "
                "the same eval_every"
            )
    Path(path_png).parent.mkdir(parents=True, exist_ok=True)
    lines = {values: [run.lines for run in members] for values, members in groups.items()}
    plot_groups(lines, settings, path_png, step_key)

    header = [*settings, "runs", "accuracy before", "after", "best", "wall minutes"]
    rows = [
        [*values, str(len(members)), *_mean_cells(members)] for values, members in groups.items()
    ]
    blocks = [table(header, rows), *_uneven_ends(groups)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _validated_runs(run_folders: Sequence[str | Path]) -> list[LoggedRun]:
    if not run_folders:
        raise ValueError("run_folders is empty; give the output folders of runs")
    runs: dict[Path, LoggedRun] = {}
    for folder in map(Path, run_folders):
        if folder.resolve() in runs:
            raise ValueError(f"{folder} is given twice; give each run once")
        run = LoggedRun(folder)
        if not run.validations:
            raise ValueError(f"{folder} has no validation to draw; leave it out")
        if run.kind.best != "eval_accuracy":
            raise ValueError(f"{folder} has no validation accuracy to draw; leave it out")
        runs[folder.resolve()] = run
    return list(runs.values())


def _common_step_key(runs: Iterable[LoggedRun]) -> str:
    """The step key of all runs: one axis cannot show both GRPO steps and SFT updates."""
    example_of = {run.step_key: run for run in runs}
    if len(example_of) > 1:
        kinds = ", ".join(f"{run.folder} counts {key}" for key, run in example_of.items())
        raise ValueError(f"the runs are of different kinds: {kinds}; compare runs of one kind")
    return next(iter(example_of))


def _mean_cells(runs: Sequence[LoggedRun]) -> list[str]:
    """Before, after and best accuracy and the minutes, each a mean over runs."""
    columns: Iterable[tuple[Line, ...]] = zip(*(run.before_after_best for run in runs), strict=True)
    cells = []
    for column in columns:
        values = logged(column, "eval_accuracy")
        error = f" ± {standard_error(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.3f}{error}")
    return [*cells, f"{mean([run.wall_time for run in runs]) / 60:.1f}"]


def _grouped(
    runs: Sequence[LoggedRun], settings: Sequence[str]
) -> dict[tuple[str, ...], list[LoggedRun]]:
    """Values of the settings, as text -> runs, in the natural order of the values."""
    groups: dict[tuple[str, ...], list[LoggedRun]] = {}
    order: dict[tuple[str, ...], list[tuple[int, float, str]]] = {}
    for run in runs:
        values = [run.settings.get(setting) for setting in settings]
        key = tuple(map(_shown, settings, values))
        groups.setdefault(key, []).append(run)
        order[key] = list(map(_rank, values, key))
    return {key: groups[key] for key in sorted(groups, key=order.__getitem__)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(setting: str, value: Any) -> str:
    if value is None:
        return _NONE_NAMES.get(setting, "unset")
    if isinstance(value, bool):
        return str(value).lower()  # as recipes have it
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value)  # 128 and 128.0 are one group


def _rank(value: Any, shown: str) -> tuple[int, float, str]:
    """Sorts values: numbers ascending, then words, then None."""
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, shown)


def _uneven_ends(groups: dict[tuple[str, ...], list[LoggedRun]]) -> list[list[str]]:
    """Which groups' runs end at different steps, for then their last accuracies differ by that."""
    notes = []
    for values, members in groups.items():
        steps = sorted({run.validations[-1][run.step_key] for run in members})
        if len(steps) > 1:
            notes.append(
                f"{' / '.join(values)} ({members[0].step_name} {', '.join(map(str, steps))})"
            )
    if not notes:
        return []
    return wrapped(
        f"Groups whose runs have their last validation at different steps: {'; '.join(notes)}."
    )
