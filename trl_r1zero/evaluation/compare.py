"""Evaluations side by side: for each task a table, and differences on the same questions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .evaluated import EvaluatedFolder, QuestionKey
from .judged_tasks import JUDGED_TASKS, answers_sha256
from .judgments_folder import (
    JUDGE_FILE,
    JUDGE_SUMMARY_FILE,
    JUDGMENTS_FOLDER,
    read_judgments,
)
from .markdown import inline, table, wrapped
from .metrics import GradedCompletion, mean, standard_error

__all__ = ["PairedDifference", "compare_folders", "paired_difference"]

# Of a normal distribution, 95% lie within so many standard errors.
_Z = 1.96
_SHARE = "{:.4f}".format


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference over the questions that two evaluations have in common.

    `stderr` is the standard error of the mean of the questions' differences: what both find hard or
    easy cancels out. NaN for fewer than two questions.
    """

    difference: float
    stderr: float
    num_common: int

    @property
    def is_clear(self) -> bool:
        """Whether it is more than 1.96 standard errors away from 0."""
        return abs(self.difference) > _Z * self.stderr


def paired_difference(
    values: Mapping[QuestionKey, float], baseline: Mapping[QuestionKey, float]
) -> PairedDifference:
    """Values less the baseline's, over the questions of both; NaN if there is none."""
    differences = [value - baseline[key] for key, value in values.items() if key in baseline]
    return PairedDifference(mean(differences), standard_error(differences), len(differences))


@dataclass
class _Entry:
    """One row of a table."""

    folder: EvaluatedFolder
    cells: dict[str, str] = field(default_factory=dict)  # column -> number
    values: dict[QuestionKey, float] = field(default_factory=dict)
    judge: dict[str, Any] | None = None  # what a judge was asked, as far as it must be the same
    left_out: str | None = None  # why


def compare_folders(
    paths: Sequence[str | Path],
    baselines: Sequence[str | Path] = (),
    judgments: str | None = None,
) -> str:
    """A Markdown table for each task, in the order in which the tasks come.

    Args:
        paths: Folders of evaluations.
        baselines: Folders that others of the same task are compared with, at most one of a task;
            they need not be among the paths. The first folder of a task is by default.
        judgments: Name of the judgments to take, where a folder has several.

    Raises:
        ValueError: No folder is left, one is given twice, is none of an evaluation, or has several
            judgments; two baselines are of one task, or one is not finished.
    """
    folders: dict[Path, EvaluatedFolder] = {}
    for path in map(Path, paths):
        if path.resolve() in folders:
            raise ValueError(f"{path} is given twice; give each folder once")
        folders[path.resolve()] = EvaluatedFolder.read(path)
    chosen: dict[str, Path] = {}
    for path in map(Path, baselines):
        folder = folders.setdefault(path.resolve(), EvaluatedFolder.read(path))
        if folder.task in chosen:
            raise ValueError(
                f"{path} is a second baseline of {folder.task}; give one for each task"
            )
        chosen[folder.task] = path.resolve()
    entries: dict[str, list[_Entry]] = {}
    for folder in folders.values():
        entries.setdefault(folder.task, []).append(_entry(folder, judgments))
    if not any(entry.left_out is None for group in entries.values() for entry in group):
        reasons = [f"\n  {_reason(entry)}" for group in entries.values() for entry in group]
        raise ValueError(f"there is nothing to compare:{''.join(reasons) or ' no folder is given'}")
    blocks = [_section(task, group, chosen.get(task)) for task, group in entries.items()]
    return "\n".join("\n".join(block) for block in blocks)


# Rows


def _entry(folder: EvaluatedFolder, judgments: str | None) -> _Entry:
    entry = _Entry(folder)
    if not folder.is_finished:
        # What ended first is what is short, so its mean is not that of the whole.
        entry.left_out = (
            f"{len(folder.rows)} of {folder.num_wanted} answers are there; the same `trl-r1zero "
            "eval` goes on"
        )
    elif all("reward" in row for row in folder.rows):
        _grade(entry)
    elif folder.task in JUDGED_TASKS:
        _judge(entry, judgments)
    else:
        entry.left_out = "its answers have no reward"
    return entry


def _grade(entry: _Entry) -> None:
    correct: dict[int, list[float]] = {}
    for row in entry.folder.rows:
        correct.setdefault(row["example"], []).append(float(GradedCompletion.from_row(row).correct))
    _set_values(entry, {example: mean(values) for example, values in correct.items()})
    own = list(entry.values.values())
    entry.cells["accuracy"] = _with_error(mean(own), standard_error(own))
    answers = [row["answer"] for row in entry.folder.rows if "answer" in row]
    if answers:
        entry.cells["unparsed"] = f"{sum(answer is None for answer in answers):,}"


def _judge(entry: _Entry, name: str | None) -> None:
    found = _judgments(entry.folder, name)
    command = f"`trl-r1zero judge {entry.folder.path} --judge_url ...`"
    if found is None:
        entry.left_out = f"it is not judged; {command} does it"
        return
    if not (found / JUDGE_SUMMARY_FILE).is_file():
        entry.left_out = f"it is not judged to the end; the same {command} goes on"
        return
    facts = json.loads((found / JUDGE_FILE).read_text(encoding="utf-8"))
    summary = json.loads((found / JUDGE_SUMMARY_FILE).read_text(encoding="utf-8"))
    if facts["answers_sha256"] != answers_sha256(entry.folder):
        entry.left_out = f"{found} is of other answers than it has now; judge it again"
        return
    _set_values(entry, JUDGED_TASKS[entry.folder.task].by_example(read_judgments(found)))
    names = {
        "win_rate": "win rate",
        "length_controlled_win_rate": "length-controlled",
        "safe": "safe",
    }
    for key, label in names.items():
        if key in summary:
            error = summary.get(f"{key}_stderr", math.nan)
            entry.cells[label] = _with_error(summary[key], error)
    entry.cells["unparsed"] = f"{summary['unparsed']:,}"
    entry.judge = {"judge": facts["judge"], "prompt_sha256": facts["prompt_sha256"]}
    if "reference" in facts:
        entry.judge["reference"] = facts["reference"]["generator"]


def _judgments(folder: EvaluatedFolder, name: str | None) -> Path | None:
    files = sorted((folder.path / JUDGMENTS_FOLDER).glob(f"*/{JUDGE_FILE}"))
    found = {path.parent.name: path.parent for path in files}
    if name is not None:
        return found.get(name)
    if len(found) > 1:
        raise ValueError(
            f"{folder.path} has several judgments: {', '.join(found)}; choose one by its name "
            "(--judgments)"
        )
    return next(iter(found.values()), None)


def _set_values(entry: _Entry, by_example: Mapping[int, float]) -> None:
    keys = entry.folder.question_keys
    entry.values = {keys[example]: value for example, value in by_example.items()}


# Tables


def _section(task: str, entries: Sequence[_Entry], chosen: Path | None) -> list[str]:
    shown = [entry for entry in entries if entry.left_out is None]
    lines = [f"## {inline(task)}", ""]
    if shown:
        baseline = shown[0]
        if chosen is not None:
            baseline = next(e for e in entries if e.folder.path.resolve() == chosen)
        if baseline.left_out is not None:
            raise ValueError(f"the baseline cannot be compared with: {_reason(baseline)}")
        lines += _table(shown, baseline)
    for entry in entries:
        if entry.left_out is not None:
            path = inline(str(entry.folder.path))
            lines += [*wrapped(f"Left out: {path}: {entry.left_out}.")[0], ""]
    return lines


def _table(entries: Sequence[_Entry], baseline: _Entry) -> list[str]:
    names = list(dict.fromkeys(name for entry in entries for name in entry.cells))
    names.sort(key=lambda name: name == "unparsed")  # last
    rows, notes = [], []
    # The baseline first, whichever it is.
    for entry in sorted(entries, key=lambda entry: entry is not baseline):
        folder = entry.folder
        cells = [entry.cells.get(name, "-") for name in names]
        about = [str(folder.path), folder.model, folder.prompt]
        difference = ["baseline", ""]
        if entry is not baseline:
            difference, note = _difference(entry, baseline)
            notes += note
        size = f"{len(folder.question_keys):,}"
        rows.append([*map(inline, about), size, *cells, *difference])
    header = ["folder", "model", "prompt", "questions", *names, "difference", "common"]
    legend = ["± is a standard error over questions."]
    if len(entries) > 1:
        legend.append(
            f"Differences are to {inline(str(baseline.folder.path))}, over the questions that both "
            f"have; an asterisk marks those of more than {_Z} of their standard errors."
        )
    judge = []
    if baseline.judge is not None:
        judged_by = f"Judged by {inline(baseline.judge['judge']['model'])}"
        if "reference" in baseline.judge:
            judged_by += f" against {inline(baseline.judge['reference'])}"
        judge = [f"{judged_by}."]
    lines = [*table(header, rows), ""]
    for paragraph in wrapped(*judge, " ".join(legend), *map(inline, notes)):
        lines += [*paragraph, ""]
    return lines


def _difference(entry: _Entry, baseline: _Entry) -> tuple[list[str], list[str]]:
    """The cells of the difference and of the common questions, and what must be said with it."""
    other, path = baseline.folder, entry.folder.path
    # The stop strings are the prompt's; everything else is the same in a fair comparison.
    notes = [
        f"Warning: {path} was sampled with {text}, {other.path} with {other_text}."
        for text, other_text in _unequal(entry.folder.facts["sampling"], other.facts["sampling"])
        if not text.startswith("stop ")
    ]
    if entry.judge is None and baseline.judge is None:
        reward, other_reward = entry.folder.facts["reward"], other.facts["reward"]
        if reward != other_reward:
            notes.append(f"Warning: {path} was graded by {reward}, {other.path} by {other_reward}.")
    if (entry.judge is None) != (baseline.judge is None):
        return ["-", ""], [*notes, f"No difference for {path}: one is judged, the other graded."]
    for text, other_text in _unequal(entry.judge or {}, baseline.judge or {}):
        notes.append(
            f"No difference for {path}, which was not judged as {other.path} was: {text}, there "
            f"{other_text}."
        )
        return ["-", ""], notes
    paired = paired_difference(entry.values, baseline.values)
    if not paired.num_common:
        return ["-", "0"], notes
    cell = f"{paired.difference:+.4f}"
    if not math.isnan(paired.stderr):
        cell += f" ± {_SHARE(paired.stderr)}"
    return [cell + (" *" if paired.is_clear else ""), f"{paired.num_common:,}"], notes


def _unequal(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`name value` of both sides, for what differs."""
    return [
        (f"{name} {_shown(here.get(name))}", f"{name} {_shown(there.get(name))}")
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_error(value: float, error: float) -> str:
    return _SHARE(value) + ("" if math.isnan(error) else f" ± {_SHARE(error)}")


def _reason(entry: _Entry) -> str:
    return f"{entry.folder.path}: {entry.left_out}"
