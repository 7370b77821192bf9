"""How a run looks in Jupyter: a bar, two curves, and a table with a row for each validation."""

import math
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

# Columns of the table: label -> metrics, of which the first that was logged is shown.
_COLUMNS = {
    "training reward": ("reward",),
    "training loss": ("nll", "loss"),
    "rollout accuracy": ("rollout_accuracy",),
    "accuracy": ("eval_accuracy",),
    "validation loss": ("eval_loss",),
    "margin": ("eval_margin",),
    "format": ("eval_format_reward",),
    "length": ("eval_length",),
    "entropy": ("eval_entropy",),
}
# Curves: metric -> name, colour.
_CURVES = {
    "eval_accuracy": ("validation accuracy", "#0072B2"),
    "reward": ("training reward", "#999999"),
    "eval_loss": ("validation loss", "#0072B2"),
    "loss": ("training loss", "#999999"),
}
_WIDTH, _HEIGHT = 480, 120
_SECONDS_BETWEEN = 0.5  # of two drawings


class NotebookBar:
    """What the progress callback needs of a tqdm bar, as HTML.

    Args:
        total: Optimizer updates of the run.
        step_name: What a step is called.
        show: Shows HTML in place of what it showed before; IPython's display by default.
    """

    def __init__(
        self, total: float, step_name: str, show: Callable[[str], None] | None = None
    ) -> None:
        self.total, self._done, self._step_name = total, 0, step_name
        self._show = show or _in_place()
        self._started, self._drawn = time.perf_counter(), -math.inf
        self._latest: dict[str, Any] = {}
        self._rows: list[dict[str, str]] = []
        self._lines: list[str] = []
        self._points: dict[str, list[tuple[float, float]]] = {name: [] for name in _CURVES}
        self.refresh()

    def update(self, number: int) -> None:
        self._done += number
        self._draw()

    def log(self, step: float, logs: Mapping[str, Any]) -> None:
        """Take what was logged at a step: its curves, and a row if it is a validation."""
        self._latest |= logs
        for name, points in self._points.items():
            if isinstance(value := logs.get(name), int | float) and math.isfinite(value):
                points.append((step, value))
        if logs.keys() & ("eval_accuracy", "eval_loss"):
            row = {self._step_name: f"{step:g}", "time": _clock(self._seconds)}
            for label, names in _COLUMNS.items():
                known = [name for name in names if name in self._latest]
                # The loss of a policy gradient says nothing by its value.
                if known and not (known[0] == "loss" and "reward" in self._latest):
                    row[label] = _number(self._latest, known[0])
            self._rows.append(row)
            self._drawn = -math.inf
        self._draw()

    def write(self, line: str) -> None:
        self._lines.append(line)
        self.refresh()

    def refresh(self) -> None:
        self._drawn = -math.inf
        self._draw()

    close = refresh

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _draw(self) -> None:
        if time.perf_counter() - self._drawn >= _SECONDS_BETWEEN:
            self._drawn = time.perf_counter()
            self._show(self.html())

    def html(self) -> str:
        """Everything that is shown."""
        done, total, seconds = self._done, max(int(self.total), 1), self._seconds
        words = [f"{done} of {total} updates", f"{_clock(seconds)} so far"]
        if 0 < done < total:
            words.append(f"about {_clock(seconds / done * (total - done))} left")
        parts = [
            f'<progress value="{done}" max="{total}" style="width:{_WIDTH}px"></progress>',
            f"<div>{', '.join(words)}</div>",
            self._curves(),
        ]
        if self._rows:
            there = {label for row in self._rows for label in row}
            columns = [x for x in (self._step_name, "time", *_COLUMNS) if x in there]
            head = "".join(f"<th>{escape(label)}</th>" for label in columns)
            cells = ([escape(row.get(label, "")) for label in columns] for row in self._rows)
            body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        parts += [f"<pre>{escape(line)}</pre>" for line in self._lines]
        return f"<div>{''.join(parts)}</div>"

    def _curves(self) -> str:
        """Rewards and accuracies, which have one scale; of a run without them, the losses."""
        names = ("eval_accuracy", "reward")
        if not any(self._points[name] for name in names):
            names = ("eval_loss", "loss")
        points = {name: self._points[name] for name in names if len(self._points[name]) > 1}
        if not points:
            return ""
        steps, values = zip(*(p for curve in points.values() for p in curve), strict=True)
        low, high = min(0.0, *values), max(values)
        if names[0] == "eval_accuracy":
            high = max(1.0, high)
        x_scale = (_WIDTH - 10) / ((max(steps) - min(steps)) or 1)
        y_scale = (_HEIGHT - 10) / ((high - low) or 1)
        first, lines, legend = min(steps), [], []
        for name, curve in points.items():
            xy = ((5 + (x - first) * x_scale, 5 + (high - y) * y_scale) for x, y in curve)
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
            label, colour = _CURVES[name]
            style = f'fill="none" stroke="{colour}" stroke-width="2"'
            lines.append(f'<polyline points="{places}" {style}/>')
            legend.append(f'<span style="color:{colour}">{label}</span>')
        return (
            f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
            f'style="border:1px solid #8888">{"".join(lines)}</svg>'
            f"<div>{' '.join(legend)}, from {low:g} to {high:g}</div>"
        )


def _number(logs: Mapping[str, Any], name: str) -> str:
    value, error = logs[name], logs.get(f"{name}_stderr")
    if not isinstance(value, int | float):
        return "not finite"
    return f"{value:.3g}" + (f" ± {error:.2g}" if isinstance(error, int | float) else "")


def _clock(seconds: float) -> str:
    return "{}:{:02}".format(*divmod(round(seconds), 60))


def _in_place() -> Callable[[str], None]:
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))
