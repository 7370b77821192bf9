"""Figures of runs, drawn from the lines of their `metrics.jsonl`.

Only figure objects are used, never `pyplot`: no window, no state that a notebook or another thread
shares.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.logged_run import (
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
    panels = [panel for panel in known if any(_points(lines, s, key)[0] for s in panel.series)]
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(4.0 * columns, 3.2 * rows + 0.3, title)
    for number, panel in enumerate(panels, start=1):
        x = "elapsed_seconds" if panel.over_time else key
        _draw_panel(figure.add_subplot(rows, columns, number), panel, lines, x)
    figure.savefig(path, dpi=100)
    return True


def plot_runs(runs: Mapping[str, Sequence[Line]], path: str | Path, x: str) -> None:
    """Draw the validation accuracy of several runs, by label, against steps into a PNG.

    With more than one run also their mean, with a band of one standard error over the runs, at the
    steps at which all of them were validated.

    Args:
        runs: Label -> lines of metrics, with validations.
        path: The figure's file.
        x: The step key of the runs, the same for all.
    """
    figure = _figure(8.0, 4.6, "Validation accuracy")
    axes = figure.add_subplot()
    curves = {label: _points(lines, _VALIDATION, x) for label, lines in runs.items()}
    for number, (label, (steps, y)) in enumerate(curves.items()):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        axes.plot(steps, y, color=colour, marker="o", markersize=3, linewidth=1, label=label)
    if len(curves) > 1:
        shared, means, errors = _mean_curve(list(curves.values()))
        label = f"mean of {len(curves)} runs, ± 1 standard error"
        axes.plot(shared, means, color="black", linewidth=2, label=label)
        _band(axes, shared, means, errors, "black")
    _style(axes, "", "accuracy", x)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False, loc="best")
    figure.savefig(path, dpi=100)


def plot_groups(
    groups: Mapping[tuple[str, ...], Sequence[Sequence[Line]]],
    settings: Sequence[str],
    path: str | Path,
    x: str,
) -> None:
    """Draw groups of runs into a PNG: mean curves of validation accuracy, and where they end.

    On the left the mean of each group's runs against steps, at the steps at which all runs of the
    group were validated, with a band of one standard error over them. On the right the last
    validation of each run as a point, and for each group the mean with its standard error.

    Args:
        groups: Values of the settings, as text -> the group's runs, as lines of metrics with
            validations. Groups stand from left to right in this order.
        settings: Names of the settings.
        path: The figure's file.
        x: The step key of the runs, the same for all.
    """
    figure = _figure(12.0, 5.2, "")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    for number, (values, runs) in enumerate(groups.items()):
        colour = RUN_COLOURS[number % len(RUN_COLOURS)]
        style = LINE_STYLES[number // len(RUN_COLOURS) % len(LINE_STYLES)]
        steps, means, errors = _mean_curve([_points(lines, _VALIDATION, x) for lines in runs])
        runs_of = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        left.plot(
            steps,
            means,
            color=colour,
            linestyle=style,
            linewidth=1.6,
            marker="o",
            markersize=3.5,
            label=f"{' / '.join(values)} ({runs_of})",
        )
        if len(runs) > 1:
            _band(left, steps, means, errors, colour)
        _draw_ends(
            right, number, [validation_lines(ls)[-1]["eval_accuracy"] for ls in runs], colour
        )
    _style(left, "Validation accuracy: mean of runs, ± 1 standard error", "accuracy", x)
    left.set_ylim(bottom=0)

    names = " / ".join(settings)
    title = "Last validation: single runs (small), mean ± 1 standard error"
    _style(right, title, "accuracy", x)
    right.set_xlabel(names, fontsize=10)
    # As wide as for three groups at least, lest the points of one be strewn over the panel.
    margin = 0.5 + max(0.0, (3 - len(groups)) / 2)
    right.set_xlim(-margin, len(groups) - 1 + margin)
    longest = max(len(value) for values in groups for value in values)
    if (longest + 2) * len(groups) <= 70:  # characters of this size that fit side by side
        right.set_xticks(range(len(groups)), ["\n".join(values) for values in groups])
    else:
        labels = [_abridged(" / ".join(values)) for values in groups]
        right.set_xticks(
            range(len(groups)), labels, rotation=30, ha="right", rotation_mode="anchor"
        )

    entries = [len(handle.get_label()) for handle in left.get_lines()]
    fitting = max(1, 150 // (max(entries) + 8))  # columns of the legend; it fills one by one
    columns = -(-len(entries) // -(-len(entries) // fitting))
    # Below both, for the colours are the groups in both, and curves leave no sure place.
    figure.legend(
        handles=left.get_lines(),
        title=names,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        title_fontsize=9.5,
        frameon=False,
        handlelength=3,
    )
    figure.savefig(path, dpi=100)


def _abridged(label: str) -> str:
    """A label that leaves room for the axes: a path, say, without its middle."""
    return label if len(label) <= 32 else f"{label[:15]} … {label[-15:]}"


def _draw_ends(axes: Axes, position: int, accuracies: Sequence[float], colour: str) -> None:
    """The last accuracies of a group's runs, and to their left the mean."""
    middle = (len(accuracies) - 1) / 2
    spread = min(0.06, 0.24 / max(1, len(accuracies) - 1))  # equal accuracies stay visible
    beside = [position + 0.15 + spread * (i - middle) for i in range(len(accuracies))]
    axes.plot(beside, accuracies, "o", color=colour, markersize=3.5, alpha=0.7, linestyle="none")
    errors = [standard_error(accuracies)] if len(accuracies) > 1 else None
    axes.errorbar(
        [position - 0.1],
        [mean(accuracies)],
        yerr=errors,
        color=colour,
        fmt="o",
        markersize=7,
        capsize=4,
        linewidth=1.6,
    )


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line], x: str) -> None:
    drawn = []
    for series in panel.series:
        steps, y = _points(lines, series, x)
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
            errors = dict(zip(*_points(lines, series, x, f"{series.metric}_stderr"), strict=True))
            _band(axes, steps, y, [errors.get(value, 0.0) for value in steps], series.colour)
        drawn.append(y)
    values = [value for y in drawn for value in y]
    positive = [value for value in values if value > 0]
    if panel.may_be_log and positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log", nonpositive="mask")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    _style(axes, panel.title, panel.y_label, x)
    if len(drawn) > 1:
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, bottom + 1.35 * (top - bottom))  # room for the legend
        axes.legend(fontsize=8.5, frameon=False, loc="upper center", ncols=2)


def _points(
    lines: Sequence[Line], series: Series, x: str, metric: str | None = None
) -> tuple[list[float], list[float]]:
    """The logged values by ascending x; the mean of those at one x (updates of a GRPO step)."""
    metric = metric or series.metric
    values_at: dict[float, list[float]] = defaultdict(list)
    for line in series.lines(lines):
        if line.get(metric) is not None:
            values_at[line[x] / X_AXES[x][1] + series.x_shift].append(line[metric])
    return sorted(values_at), [mean(values_at[value]) for value in sorted(values_at)]


def _mean_curve(
    curves: Sequence[tuple[list[float], list[float]]],
) -> tuple[list[float], list[float], list[float]]:
    """The x that all curves have, and there their mean and its standard error over the curves."""
    value_at = [dict(zip(x, y, strict=True)) for x, y in curves]
    shared = [x for x in value_at[0] if all(x in curve for curve in value_at)]
    columns = [[curve[x] for curve in value_at] for x in shared]
    return shared, [mean(c) for c in columns], [standard_error(c) for c in columns]


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
    # Half a step is no tick, half a minute is.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=x in STEP_NAMES, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
