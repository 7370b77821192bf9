"""The figure of a submission: validation accuracy against the time on its clock."""

from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.reports.plots import new_figure, save_figure, style_axes
from trl_r1zero.runs.metrics import BLUE, GREY, ORANGE

from .clock import FINISHED, START, VALIDATION, Event
from .rules import Board


def plot_submission(events: Sequence[Event], board: Board, entry: str, path: Path) -> None:
    """Draw validations while training and the full evaluation, ± 1 standard error, into a PNG."""
    unit, seconds = board.time_unit
    figure = new_figure(8.0, 4.6, "")
    axes = figure.subplots()

    def at(event: Event) -> float:
        return (event["time"] - events[0]["process_started"]) / seconds

    final = events[-1]
    by_kind = {VALIDATION: (BLUE, "o", "-"), FINISHED: (ORANGE, "D", "none")}
    for kind, (colour, marker, line) in by_kind.items():
        drawn = [event for event in events if event["event"] == kind]
        label = "while training"
        if kind == FINISHED:
            error = final["accuracy_stderr"] or 0.0
            label = f"full evaluation: {final['accuracy']:.1%} ± {error:.1%}"
        if drawn:
            look = {"color": colour, "marker": marker, "linestyle": line, "capsize": 3}
            axes.errorbar(
                [at(event) for event in drawn],
                [event["accuracy"] for event in drawn],
                yerr=[event["accuracy_stderr"] or 0.0 for event in drawn],
                label=f"{label} ({drawn[-1]['num_problems']:,} problems)",
                **look,
            )
    restarts = [at(event) for event in events[1:] if event["event"] == START]
    for number, when in enumerate(restarts):
        axes.axvline(when, color=GREY, linestyle=":", label=None if number else "started again")
    budget = board.budget_seconds / seconds
    axes.axvline(budget, color=GREY, linestyle="--", label=f"budget, {budget:g} {unit}")
    x_label = f"wall-clock since the start of the process ({unit})"
    y_label = "validation accuracy, ± 1 standard error"
    style_axes(axes, f"{entry} — {board.title}", x_label, y_label, whole_x=False)
    axes.set_xlim(0, 1.04 * max(budget, at(final)))
    # Below the axes: there may be no room for it in them.
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)
