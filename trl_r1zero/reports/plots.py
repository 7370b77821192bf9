"""Figures of single runs, and what all figures of reports are drawn with.

Only figure objects are used, never `pyplot`: no window, no state that a notebook or another thread
shares.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from trl_r1zero.runs.logged_run import LoggedRun
from trl_r1zero.runs.metrics import Panel, Series


def plot_run(run: LoggedRun, path: str | Path, title: str = "") -> bool:
    """Draw the curves of one run into a PNG of about 1200 pixels width; whether there was anything
    to draw: if not, nothing is written."""
    panels = [
        replace(panel, series=series)
        for panel in run.kind.panels
        if (series := tuple(s for s in panel.at_k(run.largest_k) if _points(run, panel, s)[0]))
    ]
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.0 * columns, 3.2 * rows + 0.3, title)
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, run)
    save_figure(figure, path)
    return True


def _draw_panel(axes: Axes, panel: Panel, run: LoggedRun) -> None:
    values = []
    for series in panel.series:
        x, y = _points(run, panel, series)
        # Many updates as a thin line; few validations and EI steps with points.
        thin = not series.metric.startswith(("eval_", "rollout_"))
        look = {"linewidth": 1.0 if thin else 1.6, "markersize": 3.5, "label": series.label}
        marker = None if thin and len(x) > 1 else "o"
        axes.plot(x, y, color=series.colour, marker=marker, **look)
        if series.has_band:
            with_error = replace(series, metric=f"{series.metric}_stderr")
            errors = dict(zip(*_points(run, panel, with_error), strict=True))
            draw_band(axes, x, y, [errors.get(value, 0.0) for value in x], series.colour)
        values += y
    if not log_scale(axes, panel, values) and min(values) >= 0:
        axes.set_ylim(bottom=0)
    x_label = "wall-clock time (minutes)" if panel.over_time else run.kind.step_name
    style_axes(axes, panel.title, x_label, panel.y_label, whole_x=not panel.over_time)
    if len(panel.series) > 1:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, bottom + 1.35 * (top - bottom))  # room for the legend
        axes.legend(fontsize=8.5, frameon=False, loc="upper center", ncols=2)


def _points(run: LoggedRun, panel: Panel, series: Series) -> tuple[list[float], list[float]]:
    key, unit = ("elapsed_seconds", 60.0) if panel.over_time else (run.kind.step_key, 1.0)
    x, y = run.points(series.metric, key)
    return [value / unit + series.x_shift for value in x], y


# What figures of groups have too


def log_scale(axes: Axes, panel: Panel, values: Sequence[float]) -> bool:
    """Make the y-axis logarithmic if the panel's may be and the values differ much."""
    positive = [value for value in values if value > 0]
    is_log = panel.may_be_log and bool(positive) and max(positive) > 10 * min(positive)
    if is_log:
        axes.set_yscale("log", nonpositive="mask")
    return is_log


def draw_band(
    axes: Axes, x: Sequence[float], y: Sequence[float], errors: Sequence[float], colour: str
) -> None:
    """A band of y plus and minus its errors."""
    low = [value - error for value, error in zip(y, errors, strict=True)]
    high = [value + error for value, error in zip(y, errors, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if len(x) == 1:  # a band has no width there
        axes.errorbar(x, y, yerr=errors, color=colour, capsize=3, fmt="none")


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, in which what it gets is laid out without overlap."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11.5)
    return figure


def style_axes(axes: Axes, title: str, x_label: str, y_label: str, *, whole_x: bool) -> None:
    """Title, labels and grid as all figures have them; `whole_x`: half a step is no tick."""
    axes.set_title(title, fontsize=10.5)
    axes.set_xlabel(x_label, fontsize=10)
    axes.set_ylabel(y_label, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole_x, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure as a PNG with a palette: a third of the size, and no difference to the eye."""
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=dpi)
    with Image.open(pixels) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
