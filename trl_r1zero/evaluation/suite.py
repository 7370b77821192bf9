"""Several evaluations of one model side by side: one row of a table, as papers print it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import json_text, write_atomically
from .markdown import inline, table, wrapped
from .metrics import mean
from .numbers import Write, interval_words

SUITE_FILE, SUITE_PAGE = "suite.json", "suite.md"
PERCENT: Write = "{:.1f}".format
# Of a task's summary.
_NUMBERS = ("num_examples", "num_completions", "accuracy", "accuracy_stderr", "accuracy_interval",
            "format_reward", "truncated", "length")  # fmt: skip
_ABOUT = (
    "Accuracies in percent. The problem is the unit of the 95% intervals in brackets (Wilson's), "
    "for answers to one problem are not independent. avg@k is the mean over the problems of the "
    "mean over k answers to each; acc is of one answer each. The average counts each task once."
)


def task_facts(
    folder: str,
    settings: Mapping[str, Any],
    temperature: float,
    summary: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `suite.json` has of a task: its results' folder, what was asked how, and of its
    summary, None before it is finished, the numbers of the table."""
    numbers = summary or {}
    facts = {name: settings[name] for name in ("task", "data", "split", "prompt")
             if name in settings}  # fmt: skip
    facts |= {"folder": folder, "temperature": temperature, "finished": summary is not None}
    if "accuracy" in numbers:
        n = numbers["num_completions"]
        facts["metric"] = f"avg@{n}" if n > 1 else "acc"
    return facts | {name: numbers[name] for name in _NUMBERS if name in numbers}


def suite_facts(model: str, tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What `suite.json` holds: `task_facts` by name, and the average once all are finished.

    The average is the mean over the tasks that are graded, each counted once. Its standard error is
    the root of the tasks' summed squared errors, over their number; its interval adds up the
    distances to the tasks' limits in the same way (Newcombe 1998; Zou and Donner 2008,
    doi:10.1002/sim.3095), so it stays within 0 and 1.
    """
    graded = [task for task in tasks.values() if "accuracy" in task]
    suite: dict[str, Any] = {"model": model, "tasks": dict(tasks)}
    if not graded or not all(task["finished"] for task in tasks.values()):
        return suite

    def together(distances: list[float]) -> float:
        return math.sqrt(math.fsum(d**2 for d in distances)) / len(distances)

    average = mean([task["accuracy"] for task in graded])
    low, high = (
        together([task["accuracy"] - task["accuracy_interval"][side] for task in graded])
        for side in (0, 1)
    )
    suite |= {"average": average, "average_interval": [average - low, average + high]}
    errors = [task["accuracy_stderr"] for task in graded if "accuracy_stderr" in task]
    if len(errors) == len(graded):
        suite["average_stderr"] = together(errors)
    return suite


def write_suite(folder: Path, suite: Mapping[str, Any]) -> None:
    """Write `suite.json`, and `suite.md` to read."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SUITE_FILE, json_text(suite))
    lines = [f"# Suite: {inline(suite['model'])}", "", *suite_table([suite]), "", *_about(suite)]
    write_atomically(folder / SUITE_PAGE, "\n".join(lines).encode())


def read_suite(folder: Path) -> dict[str, Any] | None:
    """What `suite.json` of a folder holds; None if it has none."""
    path = folder / SUITE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def suite_table(suites: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row for each suite, one column for each task, and the average."""
    names = list(dict.fromkeys(name for suite in suites for name in suite["tasks"]))
    rows = [
        [
            inline(suite["model"]),
            *(_cell(suite["tasks"].get(name, {}), "accuracy") for name in names),
            _cell(suite, "average"),
        ]
        for suite in suites
    ]
    return table(["model", *map(inline, names), "average"], rows)


def _cell(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "-"
    low, high = (PERCENT(100 * limit) for limit in facts[f"{name}_interval"])
    return f"{PERCENT(100 * facts[name])} [{low}, {high}]"


def _about(suite: Mapping[str, Any]) -> list[str]:
    """What each column is."""
    header = ["task", "metric", "problems", "temperature", "%", "95% interval", "format, %",
              "truncated, %", "mean length", "data", "folder"]  # fmt: skip
    rows = []
    for name, task in suite["tasks"].items():
        about = task.get("metric", "not graded" if task["finished"] else "not finished")
        limits = [100 * limit for limit in task.get("accuracy_interval", ())]
        numbers = [PERCENT(100 * task[key]) if key in task else "-"
                   for key in ("accuracy", "format_reward", "truncated")]  # fmt: skip
        rows.append(
            [
                *(inline(name), about, str(task.get("num_examples", "-"))),
                *(f"{task['temperature']:g}", numbers[0], interval_words(limits, PERCENT) or "-"),
                *(*numbers[1:], PERCENT(task["length"]) if "length" in task else "-"),
                *(inline(task.get("data", "the task's own")), inline(task["folder"])),
            ]
        )
    paragraphs = [line for text in wrapped(_ABOUT) for line in [*text, ""]]
    return [*paragraphs, *table(header, rows), ""]
