"""Figures of groups of runs: validation, where the runs end, and training."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.runs.logged_run import is_finite
from trl_r1zero.runs.metrics import (
    AMBER,
    BLUE,
    GREEN,
    GROUP_LOSS_PANEL,
    GROUP_PANELS,
    ORANGE,
    PURPLE,
    SKY,
)

from .compared import ComparedRun, Group, Validation
from .plots import draw_band, log_scale, new_figure, save_figure, style_axes

__all__ = ["DPI", "MAX_POINTS", "plot_training", "plot_validation"]

DPI = 120
# A seventh group has the first colour and the second style.
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
_LINE_STYLES = ("-", "--", ":")
# With more groups the thin lines of single runs would hide the means.
_MAX_GROUPS_WITH_SINGLE_RUNS = 4
# A curve of more points than this is drawn as means of consecutive ones.
MAX_POINTS = 60
_WHAT_IS_DRAWN = (
    "Means over the runs of each group, in bands of ± 1 standard error; thin: single runs"
)
_TICK_CHARACTERS, _LEGEND_CHARACTERS = 44, 140

_OfPoint = Callable[[Validation], float]


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
    points = [point for group in groups for run in group.runs for point in run.curve]
    columns = _x_axes(groups[0].runs[0], points)
    rows: list[tuple[str, _OfPoint]] = [(outcome, lambda point: point.value)]
    rewards = [point.line.get("eval_reward") for point in points]
    if all(map(is_finite, rewards)) and rewards != [point.value for point in points]:
        rows.append(("reward", lambda point: float(point.line["eval_reward"])))
    top, bottom = 4.0 * len(rows), 0.9 + 0.27 * len(groups)
    figure = new_figure(12.0, top + 0.3 + bottom + _legend_height(groups), _WHAT_IS_DRAWN)
    # Figures of their own, lest the long names below take width from the curves above.
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(top, bottom)).flat
    place = 0
    for metric, y_of in rows:
        for x_label, x_of in columns:
            place += 1
            axes = upper.add_subplot(len(rows), len(columns), place)
            for number, group in enumerate(groups):
                _draw_group(axes, _Look(number, len(groups)), group, x_of, y_of)
            whole_x = x_label == columns[0][0]
            style_axes(axes, f"Validation {metric}", x_label, metric, whole_x=whole_x)
            _set_y_limits(axes, [y_of(point) for point in points])
    _draw_ends(lower.add_subplot(), groups, outcome)
    _add_legend(figure, groups)
    save_figure(figure, path, DPI)


def plot_training(groups: Sequence[Group], path: Path) -> bool:
    """Draw the metrics of training of groups into a PNG: mean and one standard error over runs.

    Of `GROUP_PANELS` those that any run logged. Curves of many points are drawn as means of
    consecutive ones.

    Returns:
        Whether there was anything to draw; if not, nothing is written.
    """
    runs = [run for group in groups for run in group.runs]

    def is_logged(metric: str) -> bool:
        return any(_curve(run, metric) for run in runs)

    panels = [panel for panel in GROUP_PANELS if is_logged(panel.series[0].metric)]
    if len(panels) < 3 and is_logged("loss"):
        panels.append(GROUP_LOSS_PANEL)
    if not panels:
        return False
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(12.0, 3.0 * rows + 0.3 + _legend_height(groups), _WHAT_IS_DRAWN)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        values: list[float] = []
        for number, group in enumerate(groups):
            look = _Look(number, len(groups))
            values += _draw_training(axes, look, group, panel.series[0].metric)
        style_axes(axes, panel.title, runs[0].kind.step_name, panel.y_label, whole_x=True)
        if not log_scale(axes, panel, values):
            _set_y_limits(axes, values)
    _add_legend(figure, groups)
    save_figure(figure, path, DPI)
    return True


# Curves


def _x_axes(run: ComparedRun, points: Sequence[Validation]) -> list[tuple[str, _OfPoint]]:
    """Label, and a validation's place; `run` is an example."""
    seconds = max(point.seconds for point in points)
    unit, divisor = ("hours", 3600) if seconds >= 10 * 3600 else ("minutes", 60)
    axes: list[tuple[str, _OfPoint]] = [
        (run.kind.step_name, lambda point: float(point.step)),
        (f"wall-clock time ({unit})", lambda point: point.seconds / divisor),
    ]
    tokens = [point.tokens for point in points if point.tokens is not None]
    if len(tokens) == len(points):
        units = ((" (billions)", 1e9), (" (millions)", 1e6), (" (thousands)", 1e3), ("", 0.0))
        of, size = next(unit for unit in units if max(tokens) >= 2 * unit[1])
        verb = "generated" if run.kind.samples_training else "trained"
        axes.append((f"{verb} tokens{of}", lambda point: (point.tokens or 0.0) / (size or 1.0)))
    return axes


class _Look:
    """How a group is drawn, by its number among so many."""

    def __init__(self, number: int, num_groups: int) -> None:
        self.colour = _COLOURS[number % len(_COLOURS)]
        style = _LINE_STYLES[number // len(_COLOURS) % len(_LINE_STYLES)]
        self.line: dict[str, Any] = {"color": self.colour, "linestyle": style}
        self.shows_single_runs = num_groups <= _MAX_GROUPS_WITH_SINGLE_RUNS


def _draw_group(axes: Axes, look: _Look, group: Group, x_of: _OfPoint, y_of: _OfPoint) -> None:
    """The mean of the validation curves, and single runs."""
    curve = group.mean_curve()
    x = [mean([x_of(point) for point in at_step]) for at_step in curve]
    columns = [[y_of(point) for point in at_step] for at_step in curve]
    y = [mean(values) for values in columns]
    axes.plot(x, y, linewidth=1.8, marker="o", markersize=3.5, **look.line)
    several = len(group.complete) > 1
    if several:
        draw_band(axes, x, y, [standard_error(values) for values in columns], look.colour)
    for run in group.runs:
        if run.notes or (several and look.shows_single_runs):
            own = [x_of(point) for point in run.curve], [y_of(point) for point in run.curve]
            _draw_single(axes, look, run, *own)


def _draw_single(
    axes: Axes, look: _Look, run: ComparedRun, x: Sequence[float], y: Sequence[float]
) -> None:
    axes.plot(x, y, linewidth=0.7, alpha=0.6, **look.line)
    if run.is_short and x:
        axes.plot(x[-1:], y[-1:], color=look.colour, marker="x", markersize=8, markeredgewidth=2)


def _draw_training(axes: Axes, look: _Look, group: Group, metric: str) -> list[float]:
    """A group's mean of a training metric, and runs of which something is said; returns all y."""
    curves = [_curve(run, metric) for run in group.complete]
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    x = _thinned(shared)
    y = _thinned([mean([curve[step] for curve in curves]) for step in shared])
    drawn = list(y)
    if x:
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, linewidth=1.5, marker=marker, markersize=4, **look.line)
    if len(curves) > 1 and x:
        # Of the thinned curves, not thinned errors: chance in neighbouring steps averages out.
        thinned = [_thinned([curve[step] for step in shared]) for curve in curves]
        errors = [standard_error(values) for values in zip(*thinned, strict=True)]
        draw_band(axes, x, y, errors, look.colour)
    for run in group.runs:
        if run.notes:
            curve = _curve(run, metric)
            own_x, own_y = _thinned(list(curve)), _thinned(list(curve.values()))
            _draw_single(axes, look, run, own_x, own_y)
            drawn += own_y
    return drawn


def _curve(run: ComparedRun, metric: str) -> dict[float, float]:
    return dict(zip(*run.points(metric, run.kind.step_key), strict=True))


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of consecutive values, so many that at most `MAX_POINTS` are left."""
    size = -(-len(values) // MAX_POINTS) or 1
    return [mean(values[start : start + size]) for start in range(0, len(values), size)]


def _draw_ends(axes: Axes, groups: Sequence[Group], outcome: str) -> None:
    """One row a group: points of the runs' last validations, and the mean with its interval."""
    for number, group in enumerate(groups):
        colour = _Look(number, len(groups)).colour
        for marker, size, runs in (
            ("o", 4, group.complete),
            ("x", 7, [run for run in group.runs if run.is_short]),
        ):
            axes.plot(
                [run.last.value for run in runs],
                [number + 0.22] * len(runs),
                marker,
                markersize=size,
                color=colour,
                linestyle="none",
                alpha=0.7,
            )
        low, high = group.interval
        centre = group.mean_last
        axes.errorbar(
            [centre],
            [number - 0.12],
            xerr=None if math.isnan(low) else [[centre - low], [high - centre]],
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


def _legend_layout(groups: Sequence[Group]) -> tuple[list[str], int]:
    """The legend's entries, and in how many columns they stand."""
    names, numbered = _names(groups)
    entries = [
        textwrap.fill(
            f"{f'{name}: ' if numbered else ''}{group.name}",
            _LEGEND_CHARACTERS,
            break_on_hyphens=False,
        )
        for name, group in zip(names, groups, strict=True)
    ]
    widest = max(len(line) for entry in entries for line in entry.splitlines())
    fitting = max(1, 165 // (widest + 9))  # characters of this size
    return entries, -(-len(entries) // -(-len(entries) // fitting))  # columns fill one by one


def _legend_height(groups: Sequence[Group]) -> float:
    """In inches."""
    entries, columns = _legend_layout(groups)
    lines = sum(entry.count("\n") + 1 for entry in entries)
    return 0.35 + 0.21 * -(-lines // columns)


def _add_legend(figure: Figure, groups: Sequence[Group]) -> None:
    # Below the panels, for the colours are the groups in all, and curves leave no sure place.
    entries, columns = _legend_layout(groups)
    handles = [
        Line2D([], [], linewidth=1.8, label=entry, **_Look(number, len(groups)).line)
        for number, entry in enumerate(entries)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        handlelength=3,
    )
