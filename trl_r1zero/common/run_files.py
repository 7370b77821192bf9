"""Files of a run's folder that trainers write and reports read."""

import json
from pathlib import Path
from typing import Any

__all__ = ["METRICS_FILE", "SKIPPED_FILE", "Line", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped_rows.json"
Line = dict[str, Any]


def read_metrics(folder: str | Path) -> list[Line]:
    """The lines of a run's `metrics.jsonl`, in order; a last line that a crash cut off is left out.

    Raises:
        FileNotFoundError: The folder has none.
    """
    path = Path(folder, METRICS_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the output folder of a run")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
