"""The figure of a submission: validation accuracy against the time on its clock."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from trl_r1zero.runs.metrics import BLUE, GREY, ORANGE

from .clock import FINISHED, START, VALIDATION, Event, clock_start

_SECONDS_PER_HOUR = 3600.0


def time_unit(budget_seconds: float) -> tuple[str, float]:
    """The unit in which a budget is readable, and its seconds."""
    return ("hours", 3600.0) if budget_seconds >= _SECONDS_PER_HOUR else ("minutes", 60.0)


def plot_submission(
    events: Sequence[Event], budget_seconds: float, title: str, path: str | Path
) -> None:
    """Draw the validations while training and the full evaluation, ± 1 standard error, into a PNG.

    Args:
        events: Of a clock that is finished.
        budget_seconds: Where the line is.
        title: Of the figure.
        path: The figure's file.
    """
    unit, seconds = time_unit(budget_seconds)
    start = clock_start(events)

    def at(event: Event) -> float:
        return (event["time"] - start) / seconds

    figure = Figure(figsize=(8.0, 4.6), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    validations = [event for event in events if event["event"] == VALIDATION]
    if validations:
        axes.errorbar(
            [at(event) for event in validations],
            [event["accuracy"] for event in validations],
            yerr=[event["accuracy_stderr"] or 0.0 for event in validations],
            color=BLUE,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2,
            label=f"while training ({_numbers(validations)} problems)",
        )
    (final,) = (event for event in events if event["event"] == FINISHED)
    axes.errorbar(
        [at(final)],
        [final["accuracy"]],
        yerr=[final["accuracy_stderr"] or 0.0],
        color=ORANGE,
        fmt="D",
        markersize=7,
        capsize=4,
        linewidth=1.6,
        label=f"full evaluation: {final['accuracy']:.1%} ± {final['accuracy_stderr'] or 0:.1%} "
        f"({final['num_problems']:,} problems)",
    )
    for number, event in enumerate(e for e in events[1:] if e["event"] == START):
        axes.axvline(
            at(event), color=GREY, linestyle=":", label="started again" if number == 0 else None
        )
    budget = budget_seconds / seconds
    axes.axvline(budget, color=GREY, linestyle="--", label=f"budget, {budget:g} {unit}")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"wall-clock since the start of the process ({unit})", fontsize=10)
    axes.set_ylabel("validation accuracy, ± 1 standard error", fontsize=10)
    axes.set_xlim(0, 1.04 * max(budget, at(final)))
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, bottom - 0.05 * (top - bottom)), min(1.0, top + 0.1 * (top - bottom)))
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes: the curve, the full evaluation and the budget leave no sure place in them.
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=100)


def _numbers(validations: Sequence[Event]) -> str:
    numbers = sorted({event["num_problems"] for event in validations})
    return " or ".join(f"{number:,}" for number in numbers)
