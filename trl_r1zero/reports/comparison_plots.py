"""Figures of groups of runs: validation against steps, time and tokens; training; where they end.

As in `trl_r1zero.reports.plots`, only figure objects are used, never `pyplot`.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.reports.plots import (
    LINE_STYLES,
    RUN_COLOURS,
    Series,
    draw_band,
    new_figure,
    points,
    save_figure,
    style_axes,
)

from .compared import ComparedRun, Group, Validation, is_finite

__all__ = ["DPI", "MAX_POINTS", "TRAINING_PANELS", "plot_training", "plot_validation"]

DPI = 120
# With more groups the thin lines of single runs would hide the means.
_MAX_GROUPS_WITH_SINGLE_RUNS = 4
# A curve of more points than this is drawn as means of consecutive ones.
MAX_POINTS = 60
_WHAT_IS_DRAWN = (
    "Means over the runs of each group, in bands of ± 1 standard error; thin: single runs"
)
_TICK_CHARACTERS, _LEGEND_CHARACTERS = 44, 140

# Metric -> title, label of the y-axis, whether it may be logarithmic.
TRAINING_PANELS: dict[str, tuple[str, str, bool]] = {
    "reward": ("Training reward", "mean reward of the rollouts", False),
    "rollout_accuracy": ("Accuracy of the rollouts", "share of rollouts", False),
    "rollout_kept_share": ("Kept rollouts", "share of rollouts", False),
    "format_reward": ("Format reward", "share of rollouts", False),
    "nll": ("Negative log-likelihood", "nats per token", False),
    "margin": ("Margin of implicit rewards", "nats", False),
    "entropy": ("Token entropy", "nats per token", False),
    "length/mean": ("Response length", "tokens", False),
    "grad_norm": ("Gradient norm before clipping", "L2 norm", True),
    "clip_fraction": ("Clipped tokens", "share of tokens", False),
}
_LOSS_PANELS = {"loss": ("Training loss", "nats", False)}  # for kinds that log little else


def plot_validation(groups: Sequence[Group], path: Path, outcome: str) -> None:
    """Draw the validation curves of groups into a PNG, and where they end.

    Above: each group's mean over its complete runs against steps, wall-clock and tokens (where all
    runs logged these), with a band of one standard error over the runs; runs that are not complete
    as thin lines that end in a cross, others of which something is to be said (`ComparedRun.notes`)
    as thin lines, and with few groups the other single runs too. Time and tokens at a step are
    means over the runs. A second row has the reward, where it is another number than the accuracy
    (`r1_zero_reward_fn` gives 1 to a right answer, and else 0). Below: for each group the last
    validation of each run, and the mean of the complete ones with its 95% interval by Student's t.

    Args:
        groups: Of runs of one kind. They stand in this order.
        path: The figure's file.
        outcome: What the runs are compared by, such as `accuracy`.
    """
    runs = [run for group in groups for run in group.runs]
    x_axes: list[tuple[str, Callable[[Validation], float]]] = [
        (runs[0].run.step_name, lambda point: float(point.step)),
        _time_axis(max(point.seconds for run in runs for point in run.curve)),
    ]
    totals = [point.tokens for run in runs for point in run.curve]
    if all(total is not None for total in totals):
        unit, divisor = _unit(max(total or 0.0 for total in totals))
        verb = "generated" if runs[0].run.step_key in ("grpo_step", "ei_step") else "trained"
        x_axes.append(
            (f"{verb} tokens{unit}", lambda point: (point.tokens or 0.0) / divisor),
        )
    rows = _rows(runs, outcome)
    top, bottom = 4.0 * len(rows), 0.9 + 0.27 * len(groups)
    figure = new_figure(12.0, top + 0.3 + bottom + _legend_height(groups), _WHAT_IS_DRAWN)
    # Figures of their own, lest the long names below take width from the curves above.
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(top, bottom)).flat
    for row, (metric, y_of) in enumerate(rows):
        for column, (x_label, x_of) in enumerate(x_axes):
            place = row * len(x_axes) + column + 1
            axes = upper.add_subplot(len(rows), len(x_axes), place)
            for number, group in enumerate(groups):
                _draw_group(axes, group, number, len(groups), x_of, y_of)
            style_axes(axes, f"Validation {metric}", x_label, metric, whole_x=column == 0)
            _set_y_limits(axes, [y_of(point) for run in runs for point in run.curve])
    _draw_ends(lower.add_subplot(), groups, outcome)
    _add_legend(figure, groups)
    save_figure(figure, path, DPI)


def plot_training(groups: Sequence[Group], path: Path) -> bool:
    """Draw the metrics of training of groups into a PNG: mean and one standard error over runs.

    Of `TRAINING_PANELS` those that any run logged. Curves of many points are drawn as means of
    consecutive ones.

    Returns:
        Whether there was anything to draw; if not, nothing is written.
    """
    runs = [run for group in groups for run in group.runs]
    panels = {m: p for m, p in TRAINING_PANELS.items() if any(_curve(run, m)[0] for run in runs)}
    if len(panels) < 3:
        panels |= {m: p for m, p in _LOSS_PANELS.items() if any(_curve(run, m)[0] for run in runs)}
    if not panels:
        return False
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(12.0, 3.0 * rows + 0.3 + _legend_height(groups), _WHAT_IS_DRAWN)
    for place, (metric, (title, y_label, may_be_log)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        drawn = []
        for number, group in enumerate(groups):
            drawn += _draw_training(axes, group, number, len(groups), metric)
        style_axes(axes, title, runs[0].run.step_name, y_label, whole_x=True)
        positive = [value for value in drawn if value > 0]
        if may_be_log and positive and max(positive) > 10 * min(positive):
            axes.set_yscale("log", nonpositive="mask")
        else:
            _set_y_limits(axes, drawn)
    _add_legend(figure, groups)
    save_figure(figure, path, DPI)
    return True


# Curves


def _rows(
    runs: Sequence[ComparedRun], outcome: str
) -> list[tuple[str, Callable[[Validation], float]]]:
    """What is drawn of validations: its name, and its value at a point."""
    rows: list[tuple[str, Callable[[Validation], float]]] = [(outcome, lambda point: point.value)]
    points = [point for run in runs for point in run.curve]
    rewards = [point.line.get("eval_reward") for point in points]
    if all(map(is_finite, rewards)) and rewards != [point.value for point in points]:
        rows.append(("reward", lambda point: float(point.line["eval_reward"])))
    return rows


def _look(number: int) -> tuple[str, Any]:
    """Colour and line style of a group: more groups than colours take the next style."""
    style = LINE_STYLES[number // len(RUN_COLOURS) % len(LINE_STYLES)]
    return RUN_COLOURS[number % len(RUN_COLOURS)], style


def _draw_group(
    axes: Axes,
    group: Group,
    number: int,
    num_groups: int,
    x_of: Callable[[Validation], float],
    y_of: Callable[[Validation], float],
) -> None:
    colour, style = _look(number)
    curve = group.mean_curve()
    x = [mean([x_of(point) for point in at_step]) for _, at_step in curve]
    columns = [[y_of(point) for point in at_step] for _, at_step in curve]
    y = [mean(values) for values in columns]
    axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=3.5)
    if len(group.complete) > 1:
        draw_band(axes, x, y, [standard_error(values) for values in columns], colour)
    for run in group.runs:
        _draw_single(
            axes,
            run,
            [x_of(point) for point in run.curve],
            [y_of(point) for point in run.curve],
            number,
            num_groups if len(group.complete) > 1 else math.inf,
        )


def _draw_single(
    axes: Axes,
    run: ComparedRun,
    x: Sequence[float],
    y: Sequence[float],
    number: int,
    num_groups: float,
) -> None:
    """One run as a thin line; where there are many groups only one of which something is said."""
    if not run.notes and num_groups > _MAX_GROUPS_WITH_SINGLE_RUNS:
        return
    colour, style = _look(number)
    axes.plot(x, y, color=colour, linestyle=style, linewidth=0.7, alpha=0.6)
    if run.is_short and x:
        axes.plot(x[-1:], y[-1:], color=colour, marker="x", markersize=8, markeredgewidth=2)


def _draw_training(
    axes: Axes, group: Group, number: int, num_groups: int, metric: str
) -> list[float]:
    """A group's mean of a training metric, and runs of which something is said; returns all y."""
    colour, style = _look(number)
    curves = [_curve(run, metric) for run in group.complete]
    at = [dict(zip(x, y, strict=True)) for x, y in curves]
    shared = [x for x in at[0] if all(x in of_run for of_run in at)]
    columns = [[of_run[x] for of_run in at] for x in shared]
    x = _thinned(shared)
    y = _thinned([mean(values) for values in columns])
    drawn = list(y)
    if x:
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=4)
    if len(curves) > 1 and x:
        # Of the thinned curves, not thinned errors: chance in neighbouring steps averages out.
        thinned = [_thinned([of_run[x] for x in shared]) for of_run in at]
        errors = [standard_error(values) for values in zip(*thinned, strict=True)]
        draw_band(axes, x, y, errors, colour)
    for run in group.runs:
        if run.notes:
            own_x, own_y = map(_thinned, _curve(run, metric))
            _draw_single(axes, run, own_x, own_y, number, num_groups)
            drawn += own_y
    return drawn


def _curve(run: ComparedRun, metric: str) -> tuple[list[float], list[float]]:
    return points(run.run.lines, Series(metric, "", ""), run.run.step_key)


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of consecutive values, so many that at most `MAX_POINTS` are left."""
    size = -(-len(values) // MAX_POINTS) or 1
    return [mean(values[start : start + size]) for start in range(0, len(values), size)]


# Ends


def _draw_ends(axes: Axes, groups: Sequence[Group], outcome: str) -> None:
    """One row a group: points of the runs' last validations, and the mean with its interval."""
    for number, group in enumerate(groups):
        colour, _ = _look(number)
        values = [run.last.value for run in group.complete]
        single: dict[str, Any] = {"color": colour, "linestyle": "none", "alpha": 0.7}
        axes.plot(values, [number + 0.22] * len(values), "o", markersize=4, **single)
        short = [run.last.value for run in group.runs if run.is_short]
        axes.plot(short, [number + 0.22] * len(short), "x", markersize=7, **single)
        low, high = group.interval
        centre = mean(values)
        errors = None if math.isnan(low) else [[centre - low], [high - centre]]
        axes.errorbar(
            [centre],
            [number - 0.12],
            xerr=errors,
            color=colour,
            fmt="D",
            markersize=6,
            capsize=4,
            linewidth=1.8,
        )
    axes.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
    axes.set_yticks(range(len(groups)), _names(groups)[0])
    title = (
        f"{outcome.capitalize()} of the last validation: single runs (dots; crosses: ended early), "
        "mean with 95% interval (diamond)"
    )
    style_axes(axes, title, outcome, "", whole_x=False)
    axes.set_xmargin(0.04)
    if all(0 <= run.last.value <= 1 for group in groups for run in group.runs):
        # A share; the interval of a few seeds, one of which collapsed, goes beyond what there is.
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))


# Layout


def _set_y_limits(axes: Axes, values: Sequence[float]) -> None:
    """From 0 where values come near it; else as they are, lest differences be too small to see."""
    if values and min(values) >= 0 and min(values) < 0.5 * max(values):
        axes.set_ylim(bottom=0)


def _unit(largest: float) -> tuple[str, float]:
    """What to divide numbers of tokens by, and how to say it."""
    for text, divisor in ((" (billions)", 1e9), (" (millions)", 1e6), (" (thousands)", 1e3)):
        if largest >= 2 * divisor:
            return text, divisor
    return "", 1.0


def _time_axis(seconds: float) -> tuple[str, Callable[[Validation], float]]:
    unit, divisor = ("hours", 3600) if seconds >= 10 * 3600 else ("minutes", 60)
    return f"wall-clock time ({unit})", lambda point: point.seconds / divisor


def _names(groups: Sequence[Group]) -> tuple[list[str], bool]:
    """What groups are called beside an axis, and whether these are their numbers in the legend.

    Long labels lose their middle; if two would then be the same, all have numbers.
    """
    half = (_TICK_CHARACTERS - 3) // 2
    labels = [group.label for group in groups]
    short = [x if len(x) <= _TICK_CHARACTERS else f"{x[:half]} … {x[-half:]}" for x in labels]
    if len(set(short)) == len(short):
        return short, False
    return [str(number) for number in range(1, len(labels) + 1)], True


def _legend_entries(groups: Sequence[Group]) -> list[str]:
    names, numbered = _names(groups)
    return [
        textwrap.fill(
            f"{f'{name}: ' if numbered else ''}{group.label} ({group.counts})",
            _LEGEND_CHARACTERS,
            break_on_hyphens=False,
        )
        for name, group in zip(names, groups, strict=True)
    ]


def _legend_columns(entries: Sequence[str]) -> int:
    widest = max(len(line) for entry in entries for line in entry.splitlines())
    fitting = max(1, 165 // (widest + 9))  # characters of this size
    return -(-len(entries) // -(-len(entries) // fitting))  # the legend fills one by one


def _legend_height(groups: Sequence[Group]) -> float:
    """In inches."""
    entries = _legend_entries(groups)
    lines = sum(entry.count("\n") + 1 for entry in entries)
    return 0.35 + 0.21 * -(-lines // _legend_columns(entries))


def _add_legend(figure: Figure, groups: Sequence[Group]) -> None:
    # Below the panels, for the colours are the groups in all, and curves leave no sure place.
    handles = []
    for number, entry in enumerate(_legend_entries(groups)):
        colour, style = _look(number)
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=1.8, label=entry))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_legend_columns(_legend_entries(groups)),
        fontsize=9,
        frameon=False,
        handlelength=3,
    )
