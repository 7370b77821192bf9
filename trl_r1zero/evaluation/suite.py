"""Several evaluations of one model side by side: one row of a table, as papers print it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import json_text, write_atomically
from .markdown import inline, table, wrapped
from .metrics import mean
from .numbers import COUNT, interval_words

SUITE_FILE, SUITE_PAGE = "suite.json", "suite.md"
PERCENT = "{:.1f}".format
_ABOUT = (
    "Accuracies in percent. The problem is the unit of the 95% intervals in brackets (Wilson's), "
    "for answers to one problem are not independent. avg@k is the mean over the problems of the "
    "mean over k answers to each; acc is of one answer each. The average counts each task once."
)


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite: its results' folder, its settings as `evaluation.json` has them, and its
    summary, None before it is finished."""

    folder: str
    settings: Mapping[str, Any]
    temperature: float
    summary: Mapping[str, Any] | None = None

    def as_facts(self) -> dict[str, Any]:
        """What `suite.json` has of it."""
        names = ("task", "data", "split", "prompt")
        facts = {name: self.settings[name] for name in names if name in self.settings}
        facts |= {"folder": self.folder, "temperature": self.temperature}
        summary = self.summary or {}
        kept = ("num_examples", "num_completions", "accuracy", "accuracy_stderr")
        kept += ("accuracy_interval", "format_reward", "truncated", "length")  # type: ignore[assignment]
        facts |= {name: summary[name] for name in kept if name in summary}
        if "accuracy" in summary:
            n = summary["num_completions"]
            facts["metric"] = f"avg@{n}" if n > 1 else "acc"
        return facts | {"finished": self.summary is not None}


def suite_facts(model: str, tasks: Mapping[str, SuiteTask]) -> dict[str, Any]:
    """What `suite.json` holds: the tasks by name, and the average where all have an accuracy.

    The average is the mean over the tasks that are graded, each counted once. Its standard error is
    the root of the tasks' summed squared errors, over their number; its interval adds up the
    distances to the tasks' limits in the same way (Newcombe 1998; Zou and Donner 2008,
    doi:10.1002/sim.3095), so it stays within 0 and 1.
    """
    facts = {name: task.as_facts() for name, task in tasks.items()}
    graded = [task for task in facts.values() if "accuracy" in task]
    suite: dict[str, Any] = {"model": model, "tasks": facts}
    if graded and all(task["finished"] for task in facts.values()):
        center = mean([task["accuracy"] for task in graded])

        def together(distances: list[float]) -> float:
            return math.sqrt(math.fsum(d**2 for d in distances)) / len(distances)

        low, high = (
            together([task["accuracy"] - task["accuracy_interval"][side] for task in graded])
            for side in (0, 1)
        )
        suite |= {"average": center, "average_interval": [center - low, center + high]}
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
        percent = {
            key: PERCENT(100 * task[key])
            for key in ("accuracy", "format_reward", "truncated")
            if key in task
        }
        limits = [100 * limit for limit in task.get("accuracy_interval", ())]
        rows.append(
            [
                inline(name),
                task.get("metric", "not graded" if task["finished"] else "not finished"),
                COUNT(task["num_examples"]) if "num_examples" in task else "-",
                f"{task['temperature']:g}",
                percent.get("accuracy", "-"),
                interval_words(limits, PERCENT) or "-",
                percent.get("format_reward", "-"),
                percent.get("truncated", "-"),
                f"{task['length']:.1f}" if "length" in task else "-",
                inline(task.get("data", "the task's own")),
                inline(task["folder"]),
            ]
        )
    paragraphs = [line for text in wrapped(_ABOUT) for line in [*text, ""]]
    return [*paragraphs, *table(header, rows), ""]
