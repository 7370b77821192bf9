"""Figures of single runs, drawn from the lines of their `metrics.jsonl`.

Only figure objects are used, never `pyplot`: no window, no state that a notebook or another thread
shares.
"""

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from trl_r1zero.evaluation import mean
from trl_r1zero.runs.logged_run import (
    Line,
    rollout_lines,
    rollout_pass_metric,
    step_key,
    training_lines,
    validation_lines,
)
from trl_r1zero.trainers.run_folder import STEP_NAMES

# Key of the x-axis -> label, and the divisor from the logged unit to the shown one.
X_AXES = {
    **{key: (name, 1.0) for key, name in STEP_NAMES.items()},
    "elapsed_seconds": ("wall-clock time (minutes)", 60.0),
}
# Okabe and Ito's colours, which the colour-blind tell apart as well.
BLUE, GREEN, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#777777"
PURPLE, SKY, AMBER = "#CC79A7", "#56B4E9", "#E69F00"
RUN_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
# Of groups; a seventh group has the first colour and the second style.
LINE_STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Series:
    """One curve: a logged metric, in a band of its standard error if it `has_band`.

    Attributes:
        x_shift: Steps added to those logged.
    """

    metric: str
    label: str
    colour: str
    has_band: bool = False
    x_shift: float = 0.0

    @property
    def is_of_updates(self) -> bool:
        return not self.metric.startswith(("eval_", "rollout_"))

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """Those that log it: a training metric has the name of none of the others."""
        if self.metric.startswith("eval_"):
            return validation_lines(lines)
        return training_lines(lines) if self.is_of_updates else rollout_lines(lines)


@dataclass(frozen=True)
class Panel:
    """Axes with their curves.

    Attributes:
        over_time: Against the wall-clock time, not against steps.
        may_be_log: The y-axis is logarithmic where values differ much.
    """

    title: str
    y_label: str
    series: tuple[Series, ...]
    over_time: bool = False
    may_be_log: bool = False


_VALIDATION = Series("eval_accuracy", "validation", BLUE, has_band=True)
_ACCURACY = Panel("Validation accuracy, ± 1 standard error", "accuracy", (_VALIDATION,))
_ACCURACY_OVER_TIME = Panel(_ACCURACY.title, "accuracy", (_VALIDATION,), over_time=True)
_NLL = Panel(
    "Negative log-likelihood of the responses",
    "nats per token",
    (Series("nll", "training", GREY),),
)
_LENGTH = Panel(
    "Response length",
    "tokens",
    (
        Series("length/mean", "training, all", GREY),
        Series("eval_length", "validation, all", BLUE),
        Series("eval_length_correct", "correct", GREEN),
        Series("eval_length_incorrect", "incorrect", ORANGE),
    ),
)
_ENTROPY = Panel(
    "Token entropy",
    "nats per token",
    (Series("entropy", "training", GREY), Series("eval_entropy", "validation", BLUE)),
)
_GRAD_NORM = Panel(
    "Gradient norm before clipping",
    "L2 norm",
    (Series("grad_norm", "training", GREY),),
    may_be_log=True,
)
_KEPT = Panel(
    "Kept rollouts",
    "share",
    (
        Series("rollout_kept_share", "of rollouts", ORANGE),
        Series("rollout_questions_kept_share", "of questions, any kept", PURPLE),
    ),
)
# A panel none of whose metrics was logged is left out. These are those of a GRPO run.
PANELS = (
    _ACCURACY,
    _ACCURACY_OVER_TIME,
    Panel("Training reward", "mean reward of the rollouts", (Series("reward", "training", GREY),)),
    _LENGTH,
    _ENTROPY,
    _GRAD_NORM,
    Panel("Clipped tokens", "share of tokens", (Series("clip_fraction", "training", GREY),)),
)
_LEARNING_RATE = Panel("Learning rate", "per update", (Series("learning_rate", "training", GREY),))


def _loss(y_label: str) -> Panel:
    return Panel(
        "Loss",
        y_label,
        (Series("loss", "training", GREY), Series("eval_loss", "validation", BLUE, has_band=True)),
    )


DPO_PANELS = (
    Panel(
        "Accuracy on validation pairs, ± 1 standard error",
        "share of pairs",
        (
            Series("eval_accuracy", "implicit reward", BLUE, has_band=True),
            Series("eval_log_prob_accuracy", "log-probability", ORANGE, has_band=True),
        ),
    ),
    _loss("nats per pair"),
    Panel(
        "Margin of implicit rewards",
        "nats",
        (Series("margin", "training", GREY), Series("eval_margin", "validation", BLUE, True)),
    ),
    Panel(
        "Implicit reward, validation",
        "nats",
        (
            Series("eval_chosen_reward", "chosen", GREEN, has_band=True),
            Series("eval_rejected_reward", "rejected", ORANGE, has_band=True),
        ),
    ),
    _GRAD_NORM,
)
TUNING_PANELS = (_loss("nats per token"), _LEARNING_RATE, _GRAD_NORM)
SFT_PANELS = (_ACCURACY, _ACCURACY_OVER_TIME, _NLL, _LENGTH, _ENTROPY, _GRAD_NORM)


def ei_panels(lines: Sequence[Line]) -> tuple[Panel, ...]:
    """The panels of an expert iteration run, whose lines say how many rollouts a question has."""
    # The rollouts of EI step k are of the policy that validation sees after k - 1 steps.
    rollouts = [Series("rollout_accuracy", "rollouts", ORANGE, has_band=True, x_shift=-1.0)]
    pass_metric = rollout_pass_metric(lines)
    if pass_metric is not None:
        label = pass_metric.replace("rollout_", "rollouts, ")
        rollouts.append(Series(pass_metric, label, GREEN, has_band=True, x_shift=-1.0))
    accuracy = Panel(
        "Accuracy, ± 1 standard error\n(rollouts of EI step k at k - 1)",
        "accuracy",
        (_VALIDATION, *rollouts),
    )
    return accuracy, _ACCURACY_OVER_TIME, _KEPT, _NLL, _LENGTH, _ENTROPY, _GRAD_NORM


def plot_run(lines: Sequence[Line], path: str | Path, title: str = "") -> bool:
    """Draw the curves of one run into a PNG of about 1200 pixels width.

    Returns:
        Whether there was anything to draw; if not, nothing is written.

    Raises:
        ValueError: The lines are of several kinds of runs.
    """
    key = step_key(lines)
    if key is None:
        return False
    known = {
        "grpo_step": PANELS,
        "ei_step": ei_panels(lines),
        "dpo_step": DPO_PANELS,
        "tuning_step": TUNING_PANELS,
        "train_step": SFT_PANELS,
    }[key]
    panels = [panel for panel in known if any(points(lines, s, key)[0] for s in panel.series)]
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.0 * columns, 3.2 * rows + 0.3, title)
    for number, panel in enumerate(panels, start=1):
        x = "elapsed_seconds" if panel.over_time else key
        _draw_panel(figure.add_subplot(rows, columns, number), panel, lines, x)
    save_figure(figure, path)
    return True


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line], x: str) -> None:
    drawn = []
    for series in panel.series:
        steps, y = points(lines, series, x)
        if not steps:
            continue
        # Many updates as a thin line; few validations and EI steps with points.
        thin = series.is_of_updates
        axes.plot(
            steps,
            y,
            color=series.colour,
            linewidth=1.0 if thin else 1.6,
            marker=None if thin and len(steps) > 1 else "o",
            markersize=3.5,
            label=series.label,
        )
        if series.has_band:
            errors = dict(zip(*points(lines, series, x, f"{series.metric}_stderr"), strict=True))
            draw_band(axes, steps, y, [errors.get(value, 0.0) for value in steps], series.colour)
        drawn.append(y)
    values = [value for y in drawn for value in y]
    positive = [value for value in values if value > 0]
    if panel.may_be_log and positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    style_axes(axes, panel.title, X_AXES[x][0], panel.y_label, whole_x=x in STEP_NAMES)
    if len(drawn) > 1:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, bottom + 1.35 * (top - bottom))  # room for the legend
        axes.legend(fontsize=8.5, frameon=False, loc="upper center", ncols=2)


def points(
    lines: Sequence[Line], series: Series, x: str, metric: str | None = None
) -> tuple[list[float], list[float]]:
    """The logged numbers by ascending x; the mean of those at one x (updates of a GRPO step)."""
    metric = metric or series.metric
    values_at: dict[float, list[float]] = defaultdict(list)
    for line in series.lines(lines):
        # The loss of a run that diverged is NaN.
        if line.get(metric) is not None and math.isfinite(line[metric]):
            values_at[line[x] / X_AXES[x][1] + series.x_shift].append(line[metric])
    return sorted(values_at), [mean(values_at[value]) for value in sorted(values_at)]


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
