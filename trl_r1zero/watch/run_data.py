"""A run as its page shows it: plain numbers and text, from the files of its folder."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.runs.index import index_logged_run
from trl_r1zero.runs.logged_run import LoggedRun
from trl_r1zero.runs.metrics import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Panel, Series
from trl_r1zero.trainers.token_tables import TOKENS_FOLDER

# Folders of tables of answers -> what their rows are.
TABLE_FOLDERS = {"rollouts": "rollouts", "evaluations": "validation"}

_SHARES = Panel(
    "Shares of rollouts",
    "share",
    (
        Series("zero_advantage_groups", "groups without advantage", PURPLE),
        Series("truncated", "truncated", ORANGE),
        Series("eval_truncated", "truncated, validation", BLUE),
    ),
)
_MEMORY = Panel(
    "GPU memory of the trainer, peak so far",
    "GiB",
    (Series("gpu_memory_gib", "allocated by torch", BLUE),),
)
_PARTS = Panel(
    "Seconds of an update, by part",
    "seconds",
    (
        Series("seconds/step", "all", GREY),
        Series("seconds/generation", "generation", ORANGE),
        Series("seconds/rollout_wait", "waiting for rollouts", AMBER),
        Series("seconds/reward", "reward", GREEN),
        Series("seconds/forward", "forward", SKY),
        Series("seconds/backward", "backward", BLUE),
        Series("seconds/weight_sync", "weights to the server", PURPLE),
    ),
)


@dataclass(frozen=True)
class AnswerTable:
    """A table of answers of a run: `rollouts/grpo_step_00004.jsonl`, of `step`."""

    name: str
    kind: str
    step: int


def run_data(folder: Path) -> dict[str, Any]:
    """What the page shows of a run, but its answers.

    Args:
        folder: The run's `output_dir`.

    Returns:
        `name`, `folder`, `method`, `step_name`, `state` (as `IndexedRun`; `updated` is when its
        last line was written, in seconds since 1970), `panels` (each with its `title`, no two
        alike, and its curves), `settings` and `tables`; JSON without NaN.

    Raises:
        FileNotFoundError: The folder has no metrics.
        ValueError: A file of it cannot be read.
    """
    run = LoggedRun(folder)
    panels = (*run.kind.panels, *((_SHARES,) if run.kind.samples_training else ()), _PARTS, _MEMORY)
    return {
        "name": run.name,
        "folder": str(folder),
        "method": run.kind.method,
        "step_name": run.kind.step_name,
        "state": _state(run),
        "panels": [drawn for panel in panels if (drawn := _panel(run, panel))["series"]],
        "settings": {key: _text(value) for key, value in sorted(run.settings.items())},
        "tables": [vars(table) for table in answer_tables(folder)],
    }


def _state(run: LoggedRun) -> dict[str, Any]:
    one = index_logged_run(run)
    return {
        "status": one.state,
        "reason": one.reason,
        "step": one.step,
        "planned": one.planned_steps,
        "elapsed": one.seconds,
        "eta": one.seconds_left,
        "updated": time.time() - one.age_seconds,
        "metric": (one.metric or "").removeprefix("eval_"),
        "last": _plain(one.last),
        "best": _plain(one.best),
    }


def _panel(run: LoggedRun, panel: Panel) -> dict[str, Any]:
    x = "elapsed_seconds" if panel.over_time else run.kind.step_key
    series = []
    for one in panel.at_k(run.largest_k):
        steps, values = run.points(one.metric, x)
        if values:
            curve = {"label": one.label, "colour": one.colour, "y": values}
            curve["x"] = [step + one.x_shift for step in steps]
            # In the order of the values: a validation that has one has the other.
            errors = run.points(f"{one.metric}_stderr", x)[1] if one.has_band else []
            series.append(curve | ({"error": errors} if len(errors) == len(values) else {}))
    return {
        "title": panel.title.replace("\n", " ") + (", over time" if panel.over_time else ""),
        "x_label": "seconds" if panel.over_time else run.kind.step_name,
        "y_label": panel.y_label,
        "log": panel.may_be_log,
        "series": series,
    }


def answer_tables(folder: Path) -> list[AnswerTable]:
    """The tables of answers that a run has written, by step."""
    tables = []
    for name, kind in TABLE_FOLDERS.items():
        for file in (folder / name).glob("*_step_*.jsonl"):
            number = file.stem.rpartition("_")[2]
            if number.isdigit():
                tables.append(AnswerTable(f"{name}/{file.name}", kind, int(number)))
    return sorted(tables, key=lambda table: (table.kind, table.step))


def answers(folder: Path, table: AnswerTable) -> list[dict[str, Any]]:
    """The rows of a table, each with its `tokens` (text, log-probability, entropy, and the ratio of
    off-policy updates) where the run wrote them."""
    file = folder / table.name
    rows = [dict(row.fields) for row in read_jsonl(file)]
    tokens = file.parent / TOKENS_FOLDER / file.name
    if tokens.is_file():
        for row, of_row in zip(rows, read_jsonl(tokens), strict=False):
            row["tokens"] = of_row.fields["tokens"]
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def compact_json(value: Any) -> str:
    """JSON that may stand in a script element of HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
