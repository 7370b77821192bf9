"""Figures of runs, drawn from the lines of their `metrics.jsonl`.

Only figure objects are used, never `pyplot`: no window, no state that a notebook or another thread
shares.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from trl_r1zero.evaluation import mean, standard_error

Line = dict[str, Any]  # one line of metrics.jsonl

# Key of the x-axis -> label, and the divisor from the logged unit to the shown one.
X_AXES = {"grpo_step": ("GRPO step", 1.0), "elapsed_seconds": ("wall-clock time (minutes)", 60.0)}
# Okabe and Ito's colours, which the colour-blind tell apart as well.
BLUE, GREEN, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#777777"
RUN_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")


@dataclass(frozen=True)
class Series:
    """One curve: a logged metric, and the metric of its standard error if it has a band."""

    metric: str
    label: str
    colour: str
    stderr: str | None = None

    @property
    def is_validation(self) -> bool:
        return self.metric.startswith("eval_")


@dataclass(frozen=True)
class Panel:
    title: str
    y_label: str
    series: tuple[Series, ...]
    x: str = "grpo_step"
    may_be_log: bool = False


_ACCURACY = Series("eval_accuracy", "validation", BLUE, stderr="eval_accuracy_stderr")
# A panel none of whose metrics was logged is left out.
PANELS = (
    Panel("Validation accuracy, ± 1 standard error", "accuracy", (_ACCURACY,)),
    Panel("Validation accuracy, ± 1 standard error", "accuracy", (_ACCURACY,), x="elapsed_seconds"),
    Panel("Training reward", "mean reward of the rollouts", (Series("reward", "training", GREY),)),
    Panel(
        "Response length",
        "tokens",
        (
            Series("length/mean", "training, all", GREY),
            Series("eval_length", "validation, all", BLUE),
            Series("eval_length_correct", "correct", GREEN),
            Series("eval_length_incorrect", "incorrect", ORANGE),
        ),
    ),
    Panel(
        "Token entropy",
        "nats per token",
        (Series("entropy", "training", GREY), Series("eval_entropy", "validation", BLUE)),
    ),
    Panel(
        "Gradient norm before clipping",
        "L2 norm",
        (Series("grad_norm", "training", GREY),),
        may_be_log=True,
    ),
    Panel("Clipped tokens", "share of tokens", (Series("clip_fraction", "training", GREY),)),
)


def training_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines about optimizer updates (not validations, not the summary at the end)."""
    return [line for line in lines if "grpo_step" in line and "eval_accuracy" not in line]


def validation_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines about validations."""
    return [line for line in lines if "eval_accuracy" in line]


def plot_run(lines: Sequence[Line], path: str | Path, title: str = "") -> bool:
    """Draw the curves of one run into a PNG of about 1200 pixels width.

    Returns:
        Whether there was anything to draw; if not, nothing is written.
    """
    panels = [panel for panel in PANELS if any(_points(lines, s, panel.x)[0] for s in panel.series)]
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(4.0 * columns, 3.2 * rows + 0.3, title)
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, lines)
    figure.savefig(path, dpi=100)
    return True


def plot_runs(runs: Mapping[str, Sequence[Line]], path: str | Path) -> None:
    """Draw the validation accuracy of several runs, by label, against GRPO steps into a PNG.

    With more than one run also their mean, with a band of one standard error over the runs, at the
    GRPO steps at which all of them were validated.
    """
    figure = _figure(8.0, 4.6, "Validation accuracy")
    axes = figure.add_subplot()
    curves = {label: _points(lines, _ACCURACY, "grpo_step") for label, lines in runs.items()}
    for number, (label, (x, y)) in enumerate(curves.items()):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1, label=label)
    if len(curves) > 1:
        accuracy_at = [dict(zip(x, y, strict=True)) for x, y in curves.values()]
        shared = [x for x in accuracy_at[0] if all(x in curve for curve in accuracy_at)]
        columns = [[curve[x] for curve in accuracy_at] for x in shared]
        label = f"mean of {len(curves)} runs, ± 1 standard error"
        axes.plot(shared, [mean(c) for c in columns], color="black", linewidth=2, label=label)
        _band(
            axes, shared, [mean(c) for c in columns], [standard_error(c) for c in columns], "black"
        )
    _style(axes, "", "accuracy", "grpo_step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False, loc="best")
    figure.savefig(path, dpi=100)


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    drawn = []
    for series in panel.series:
        x, y = _points(lines, series, panel.x)
        if not x:
            continue
        # Few validations, many updates: the former with points, the latter as a thin line.
        marker = "o" if series.is_validation or len(x) == 1 else None
        axes.plot(
            x,
            y,
            color=series.colour,
            linewidth=1.6 if series.is_validation else 1.0,
            marker=marker,
            markersize=3.5,
            label=series.label,
        )
        if series.stderr is not None:
            errors = dict(zip(*_points(lines, series, panel.x, series.stderr), strict=True))
            _band(axes, x, y, [errors.get(value, 0.0) for value in x], series.colour)
        drawn.append(y)
    values = [value for y in drawn for value in y]
    positive = [value for value in values if value > 0]
    if panel.may_be_log and positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    _style(axes, panel.title, panel.y_label, panel.x)
    if len(drawn) > 1:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, bottom + 1.35 * (top - bottom))  # room for the legend
        axes.legend(fontsize=8.5, frameon=False, loc="upper center", ncols=2)


def _points(
    lines: Sequence[Line], series: Series, x: str, metric: str | None = None
) -> tuple[list[float], list[float]]:
    """The logged values by ascending x; the mean of those at one x (updates of a GRPO step)."""
    chosen = validation_lines(lines) if series.is_validation else training_lines(lines)
    metric = metric or series.metric
    values_at: dict[float, list[float]] = defaultdict(list)
    for line in chosen:
        if line.get(metric) is not None:
            values_at[line[x] / X_AXES[x][1]].append(line[metric])
    return sorted(values_at), [mean(values_at[value]) for value in sorted(values_at)]


def _band(
    axes: Axes, x: Sequence[float], y: Sequence[float], errors: Sequence[float], colour: str
) -> None:
    low = [value - error for value, error in zip(y, errors, strict=True)]
    high = [value + error for value, error in zip(y, errors, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if len(x) == 1:  # a band has no width there
        axes.errorbar(x, y, yerr=errors, color=colour, capsize=3, fmt="none")


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _style(axes: Axes, title: str, y_label: str, x: str) -> None:
    axes.set_title(title, fontsize=10.5)
    axes.set_xlabel(X_AXES[x][0], fontsize=10)
    axes.set_ylabel(y_label, fontsize=10)
    axes.tick_params(labelsize=9)
    # Half a GRPO step is no tick, half a minute is.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=x == "grpo_step", min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
