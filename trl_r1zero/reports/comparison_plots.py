"""Figures of groups of runs: validation, where the runs end, and training."""

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trl_r1zero.evaluation.metrics import mean, standard_error
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
    Panel,
)

from .compared import ComparedRun, Group, Validation
from .plots import draw_band, log_scale, new_figure, save_figure, style_axes

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
_Curve = dict[float, tuple[float, float]]  # step -> x, y


def plot_validation(groups: Sequence[Group], path: Path, outcome: str) -> None:
    """Draw the validation curves of groups, which are of one kind, into a PNG, and where they end.

    Above: each group's mean over its complete runs against steps, wall-clock and tokens (where all
    runs logged these), with a band of one standard error over the runs; runs that are not complete
    as thin lines that end in a cross, others of which something is to be said (`ComparedRun.notes`)
    as thin lines, and with few groups the other single runs too. Time and tokens at a step are
    means over the runs. A second row has the reward, where it is another number than the accuracy
    (`r1_zero_reward_fn` gives 1 to a right answer, and else 0). Below: for each group the last
    validation of each run, and the mean of the complete ones with its 95% interval by Student's t.
    """
    points = [point for group in groups for run in group.runs for point in run.curve]
    columns = _x_axes(groups[0].runs[0], points)
    rows: list[tuple[str, _OfPoint]] = [(outcome, lambda point: point.value)]
    rewards = [point.line.get("eval_reward") for point in points]
    if all(map(is_finite, rewards)) and rewards != [point.value for point in points]:
        rows.append(("reward", lambda point: float(point.line["eval_reward"])))
    top, bottom = 4.0 * len(rows), 0.9 + 0.27 * len(groups)
    figure = _new_figure(groups, top + bottom)
    # Figures of their own, lest the long names below take width from the curves above.
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(top, bottom)).flat
    for place, (row, column) in enumerate(itertools.product(rows, columns), start=1):
        (metric, y_of), (x_label, x_of) = row, column
        axes = upper.add_subplot(len(rows), len(columns), place)

        def curve(run: ComparedRun, x_of: _OfPoint = x_of, y_of: _OfPoint = y_of) -> _Curve:
            return {point.step: (x_of(point), y_of(point)) for point in run.curve}

        single_runs = len(groups) <= _MAX_GROUPS_WITH_SINGLE_RUNS
        for number, group in enumerate(groups):
            _draw_group(axes, _line(number), group, curve, single_runs=single_runs)
        whole_x = x_label == columns[0][0]
        style_axes(axes, f"Validation {metric}", x_label, metric, whole_x=whole_x)
        _set_y_limits(axes, [y_of(point) for point in points])
    _draw_ends(lower.add_subplot(), groups, outcome)
    save_figure(figure, path, DPI)


def plot_training(groups: Sequence[Group], path: Path) -> bool:
    """Draw the metrics of training of groups into a PNG: mean and one standard error over runs.

    Of `GROUP_PANELS` those that any run logged. Curves of many points are drawn as means of
    consecutive ones. Returns whether there was anything to draw; if not, nothing is written.
    """
    runs = [run for group in groups for run in group.runs]
    step_key, step_name = runs[0].kind.step_key, runs[0].kind.step_name

    def is_logged(panel: Panel) -> bool:
        return any(run.points(panel.series[0].metric, step_key)[0] for run in runs)

    panels = [panel for panel in GROUP_PANELS if is_logged(panel)]
    if len(panels) < 3 and is_logged(GROUP_LOSS_PANEL):
        panels.append(GROUP_LOSS_PANEL)
    if not panels:
        return False
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _new_figure(groups, 3.0 * rows)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)

        def curve(run: ComparedRun, metric: str = panel.series[0].metric) -> _Curve:
            steps, values = run.points(metric, step_key)
            return {step: (step, value) for step, value in zip(steps, values, strict=True)}

        drawn: list[float] = []
        for number, group in enumerate(groups):
            drawn += _draw_group(axes, _line(number), group, curve, is_training=True)
        style_axes(axes, panel.title, step_name, panel.y_label, whole_x=True)
        if not log_scale(axes, panel, drawn):
            _set_y_limits(axes, drawn)
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


def _line(number: int) -> dict[str, Any]:
    """Colour and style of the lines of a group, by its number."""
    style = _LINE_STYLES[number // len(_COLOURS) % len(_LINE_STYLES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": style}


def _draw_group(
    axes: Axes,
    line: dict[str, Any],
    group: Group,
    curve_of: Callable[[ComparedRun], _Curve],
    *,
    is_training: bool = False,
    single_runs: bool = False,
) -> list[float]:
    """The mean of the complete runs with its band, and single runs, or only those of which
    something is to be said; returns all y."""
    thinned = _thinned if is_training else list
    curves = [curve_of(run) for run in group.complete]
    shared = [step for step in curves[0] if all(step in curve for curve in curves)]
    x = thinned([mean([curve[step][0] for curve in curves]) for step in shared])
    # The errors are of the thinned curves: chance in neighbouring steps averages out.
    columns = list(zip(*(thinned([c[step][1] for step in shared]) for c in curves), strict=True))
    y = [mean(values) for values in columns]
    several = len(curves) > 1
    if x:
        width, size = (1.5, 4) if is_training else (1.8, 3.5)
        marker = "o" if not is_training or len(x) == 1 else None
        axes.plot(x, y, linewidth=width, marker=marker, markersize=size, **line)
        if several:
            draw_band(axes, x, y, [standard_error(values) for values in columns], line["color"])
    drawn = list(y)
    for run in group.runs:
        if run.notes or (several and single_runs):
            curve = curve_of(run)
            own_x, own_y = (thinned([point[i] for point in curve.values()]) for i in (0, 1))
            axes.plot(own_x, own_y, linewidth=0.7, alpha=0.6, **line)
            if run.is_short:
                end: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2}
                axes.plot(own_x[-1:], own_y[-1:], color=line["color"], **end)
            drawn += own_y
    return drawn


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of consecutive values, so many that at most `MAX_POINTS` are left."""
    size = -(-len(values) // MAX_POINTS) or 1
    return [mean(values[start : start + size]) for start in range(0, len(values), size)]


def _draw_ends(axes: Axes, groups: Sequence[Group], outcome: str) -> None:
    """One row a group: points of the runs' last validations, and the mean with its interval."""
    for number, group in enumerate(groups):
        colour = _line(number)["color"]
        short = [run for run in group.runs if run.is_short]
        for marker, size, runs in (("o", 4, group.complete), ("x", 7, short)):
            ends, places = [run.last.value for run in runs], [number + 0.22] * len(runs)
            look = {"markersize": size, "color": colour, "linestyle": "none", "alpha": 0.7}
            axes.plot(ends, places, marker, **look)
        (low, high), centre = group.interval, group.mean_last
        error = None if math.isnan(low) else [[centre - low], [high - centre]]
        look = {"color": colour, "fmt": "D", "markersize": 6, "capsize": 4, "linewidth": 1.8}
        axes.errorbar([centre], [number - 0.12], xerr=error, **look)
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


def _new_figure(groups: Sequence[Group], height: float) -> Figure:
    """A figure with so many inches for panels, and a legend below them: the colours are the groups
    in all, and curves leave no sure place."""
    names, numbered = _names(groups)
    prefixes = [f"{name}: " if numbered else "" for name in names]
    entries = [
        textwrap.fill(name + group.name, _LEGEND_CHARACTERS, break_on_hyphens=False)
        for name, group in zip(prefixes, groups, strict=True)
    ]
    widest = max(len(line) for entry in entries for line in entry.splitlines())
    fitting = max(1, 165 // (widest + 9))  # characters of this size
    columns = -(-len(entries) // -(-len(entries) // fitting))  # they fill one by one
    lines = sum(entry.count("\n") + 1 for entry in entries)
    figure = new_figure(12.0, height + 0.65 + 0.21 * -(-lines // columns), _WHAT_IS_DRAWN)
    figure.legend(
        handles=[
            Line2D([], [], linewidth=1.8, label=entry, **_line(number))
            for number, entry in enumerate(entries)
        ],
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        handlelength=3,
    )
    return figure
