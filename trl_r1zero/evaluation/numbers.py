"""Numbers as text, and a mean with its standard error."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .markdown import table
from .pages import Table

Write = Callable[[Any], str]
SHARE: Write = "{:.4f}".format
LENGTH: Write = "{:.1f}".format
COUNT: Write = "{:,.0f}".format


def interval_words(limits: Sequence[float], write: Write = SHARE) -> str:
    """`0.6500 to 0.7500`."""
    return " to ".join(map(write, limits))


def plus_minus(value: float, error: float | None, write: Write = SHARE) -> str:
    """`0.7000 ± 0.0100`; the value alone, where the error is None or NaN."""
    if error is None or math.isnan(error):
        return write(value)
    return f"{write(value)} ± {write(error)}"


def with_error(metrics: Mapping[str, Any], name: str, write: Write = SHARE) -> str:
    """A metric and its `{name}_stderr`, if there is one; "-" where there is no such metric."""
    if name not in metrics:
        return "-"
    return plus_minus(metrics[name], metrics.get(f"{name}_stderr"), write)


def metric_rows(
    summary: Mapping[str, Any], metrics: Mapping[str, tuple[str, Write]]
) -> list[tuple[str, str]]:
    """(label, number) of the metrics that a summary has; `metrics`: name -> (label, format)."""
    return [
        (label, with_error(summary, name, write))
        for name, (label, write) in metrics.items()
        if name in summary
    ]


def groups_table(
    name: str, groups: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, tuple[str, Write]]
) -> Table:
    """A row for each group, with its name first; `metrics` as in `metric_rows`."""
    rows = [
        [group, *(with_error(values, key, write) for key, (_, write) in metrics.items())]
        for group, values in groups.items()
    ]
    return Table([name, *(label for label, _ in metrics.values())], rows)


def metrics_table(rows: Sequence[Sequence[str]]) -> str:
    """Such rows as a Markdown table."""
    return "\n".join(table(["metric", "value"], rows))
