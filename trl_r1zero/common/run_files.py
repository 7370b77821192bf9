"""Files of a run's folder that trainers write and reports read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped_rows.json"
FILTER_FILE = "problem_filter.json"
Line = dict[str, Any]
_COUNTS = ("step", "elapsed_seconds")  # in every line of a run's metrics


def read_metrics(folder: str | Path) -> list[Line]:
    """The lines of a run's `metrics.jsonl`, in order; a last line that a crash cut off is left out.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: A line is not one of metrics; the text begins with `path:line:`.
    """
    path = Path(folder, METRICS_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the output folder of a run")
    return [parse_line(line, f"{path}:{number}") for number, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines, with their numbers from 1; a cut may leave a part of one at the end, or zeros."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip(b" \r\0")]


def parse_line(line: bytes, where: str) -> Line:
    """The metrics of a line; a ValueError that begins with `where` if it has none."""
    try:
        metrics = json.loads(line)
    except ValueError:
        metrics = None
    counts = [metrics.get(name, 0) for name in _COUNTS] if isinstance(metrics, dict) else [None]
    if not all(isinstance(count, int | float) for count in counts):
        raise ValueError(
            f"{where}: got {line[:80]!r}, expected an object of metrics in JSON; remove the line"
        )
    return dict(metrics)


def todays_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, maybe of an earlier version, under the names that they have now."""
    renamed = {**settings}
    one_step_off = renamed.pop("one_step_off", None)
    if one_step_off is not None or "max_staleness" in renamed:
        renamed["max_staleness"] = renamed.get("max_staleness") or int(one_step_off or 0)
    return renamed
