"""Evaluations side by side: for each task a table, and differences on the same questions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .evaluated import EvaluatedFolder, QuestionKey
from .judge import JUDGE_FILE, JUDGE_SUMMARY_FILE, JUDGMENTS_FOLDER, read_judgments
from .judged_tasks import JUDGED_TASKS, answers_sha256
from .markdown import inline, table, wrapped
from .metrics import Z_95, GradedCompletion, grouped, mean, standard_error
from .numbers import COUNT, SHARE, metric_rows, plus_minus
from .suite import read_suite, suite_table

# Columns of what a judge said.
_JUDGED = {
    "win_rate": ("win rate", SHARE),
    "length_controlled_win_rate": ("length-controlled", SHARE),
    "safe": ("safe", SHARE),
    "unparsed": ("unparsed", COUNT),
}


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
        return abs(self.difference) > Z_95 * self.stderr


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

    @property
    def reason(self) -> str:
        return f"{self.folder.path}: {self.left_out}"

    def set_values(self, by_example: Mapping[int, float]) -> None:
        keys = self.folder.question_keys
        self.values = {keys[example]: value for example, value in by_example.items()}


def compare_folders(
    paths: Sequence[str | Path], baselines: Sequence[str | Path] = (), judgments: str | None = None
) -> str:
    """A Markdown table for each task, in the order in which the tasks come; before them one of all
    suites.

    Args:
        paths: Folders of evaluations, or of suites, which stand for their tasks' folders.
        baselines: Folders that others of the same task are compared with, at most one of a task;
            they need not be among the paths. The first folder of a task is by default.
        judgments: Name of the judgments to take, where a folder has several.

    Raises:
        ValueError: No folder is left, one is given twice, is none of an evaluation, or has several
            judgments; two baselines are of one task, or one is not finished.
    """
    folders: dict[Path, EvaluatedFolder] = {}
    suites = {Path(path): suite for path in paths if (suite := read_suite(Path(path)))}
    for path in _of_tasks(paths):
        if path.resolve() in folders:
            raise ValueError(f"{path} is given twice; give each folder once")
        folders[path.resolve()] = EvaluatedFolder.read(path)
    chosen: dict[str, Path] = {}
    for path in _of_tasks(baselines):
        folder = folders.setdefault(path.resolve(), EvaluatedFolder.read(path))
        if folder.task in chosen:
            message = f"{path} is a second baseline of {folder.task}; give one for each task"
            raise ValueError(message)
        chosen[folder.task] = path.resolve()
    entries = [_entry(folder, judgments) for folder in folders.values()]
    if all(entry.left_out for entry in entries):
        reasons = "".join(f"\n  {entry.reason}" for entry in entries) or " no folder is given"
        raise ValueError(f"there is nothing to compare:{reasons}")
    lines = ["## Suites", "", *suite_table(list(suites.values())), ""] if suites else []
    for task, group in grouped((entry.folder.task, entry) for entry in entries).items():
        lines += _section(task, group, chosen.get(task))
    return "\n".join(lines)


def _of_tasks(paths: Sequence[str | Path]) -> list[Path]:
    """The paths, with the folders of its tasks for each that is a suite's."""
    found = []
    for path in map(Path, paths):
        suite = read_suite(path)
        found += [path] if suite is None else [path / t["folder"] for t in suite["tasks"].values()]
    return found


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
        _read_grades(entry)
    elif folder.task in JUDGED_TASKS:
        entry.left_out = _read_judgments(entry, judgments)
    else:
        entry.left_out = "its answers have no reward"
    return entry


def _read_grades(entry: _Entry) -> None:
    rows = [GradedCompletion.from_row(row) for row in entry.folder.rows]
    correct = grouped((row.example or 0, float(row.correct)) for row in rows)
    entry.set_values({example: mean(values) for example, values in correct.items()})
    own = list(entry.values.values())
    entry.cells["accuracy"] = plus_minus(mean(own), standard_error(own))
    if answers := [row["answer"] for row in entry.folder.rows if "answer" in row]:
        entry.cells["unparsed"] = COUNT(answers.count(None))


def _read_judgments(entry: _Entry, name: str | None) -> str | None:
    """Fill in what a judge said; or return why it cannot be compared."""
    found = _judgments_of(entry.folder, name)
    command = f"`trl-r1zero judge {entry.folder.path} --judge_url ...`"
    if found is None:
        return f"it is not judged; {command} does it"
    if not (found / JUDGE_SUMMARY_FILE).is_file():
        return f"it is not judged to the end; the same {command} goes on"
    facts, summary = (
        json.loads((found / file).read_text(encoding="utf-8"))
        for file in (JUDGE_FILE, JUDGE_SUMMARY_FILE)
    )
    if facts["answers_sha256"] != answers_sha256(entry.folder):
        return f"{found} is of other answers than it has now; judge it again"
    entry.set_values(JUDGED_TASKS[entry.folder.task].by_example(read_judgments(found)))
    entry.cells = dict(metric_rows(summary, _JUDGED))
    entry.judge = {"judge": facts["judge"], "prompt_sha256": facts["prompt_sha256"]}
    if "reference" in facts:
        entry.judge["reference"] = facts["reference"]["generator"]
    return None


def _judgments_of(folder: EvaluatedFolder, name: str | None) -> Path | None:
    files = sorted((folder.path / JUDGMENTS_FOLDER).glob(f"*/{JUDGE_FILE}"))
    found = {path.parent.name: path.parent for path in files}
    if name is None and len(found) > 1:
        raise ValueError(
            f"{folder.path} has several judgments: {', '.join(found)}; choose one by its name "
            "(--judgments)"
        )
    return found.get(name) if name is not None else next(iter(found.values()), None)


# Tables


def _section(task: str, entries: Sequence[_Entry], chosen: Path | None) -> list[str]:
    compared = [entry for entry in entries if entry.left_out is None]
    left_out = [entry for entry in entries if entry.left_out is not None]
    lines = [f"## {inline(task)}", ""]
    if compared:
        named = [entry for entry in entries if entry.folder.path.resolve() == chosen]
        baseline = named[0] if named else compared[0]
        if baseline.left_out is not None:
            raise ValueError(f"the baseline cannot be compared with: {baseline.reason}")
        lines += _table(compared, baseline)
    names = [f"Left out: {inline(str(e.folder.path))}: {e.left_out}." for e in left_out]
    return lines + _paragraphs(names)


def _table(entries: Sequence[_Entry], baseline: _Entry) -> list[str]:
    names = list(dict.fromkeys(name for entry in entries for name in entry.cells))
    names.sort(key=lambda name: name == "unparsed")  # last
    rows, notes = [], []
    # The baseline first, whichever it is.
    for entry in sorted(entries, key=lambda entry: entry is not baseline):
        folder = entry.folder
        difference = ["baseline", ""]
        if entry is not baseline:
            difference, warnings = _difference(entry, baseline)
            notes += warnings
        about = map(inline, (str(folder.path), folder.model, folder.setting("prompt")))
        cells = [entry.cells.get(name, "-") for name in names]
        rows.append([*about, COUNT(len(folder.question_keys)), *cells, *difference])
    header = ["folder", "model", "prompt", "questions", *names, "difference", "common"]
    paragraphs = ["± is a standard error over questions."]
    if len(entries) > 1:
        paragraphs[0] += (
            f" Differences are to {inline(str(baseline.folder.path))}, over the questions that "
            f"both have; an asterisk marks those of more than {Z_95} of their standard errors."
        )
    if baseline.judge is not None:
        judge, reference = baseline.judge["judge"]["model"], baseline.judge.get("reference")
        against = "" if reference is None else f" against {inline(reference)}"
        paragraphs.insert(0, f"Judged by {inline(judge)}{against}.")
    return [*table(header, rows), "", *_paragraphs([*paragraphs, *map(inline, notes)])]


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [line for paragraph in wrapped(*texts) for line in [*paragraph, ""]]


def _difference(entry: _Entry, baseline: _Entry) -> tuple[list[str], list[str]]:
    """The cells of the difference and of the common questions, and what must be said with it."""
    folder, other = entry.folder, baseline.folder
    # The stop strings are the prompt's; everything else is the same in a fair comparison.
    notes = [
        f"Warning: {folder.path} was sampled with {text}, {other.path} with {other_text}."
        for text, other_text in _unequal(folder.facts["sampling"], other.facts["sampling"])
        if not text.startswith("stop ")
    ]
    if (entry.judge is None) != (baseline.judge is None):
        note = f"No difference for {folder.path}: one is judged, the other graded."
        return ["-", ""], [*notes, note]
    rewards = folder.facts["reward"], other.facts["reward"]
    if entry.judge is None and rewards[0] != rewards[1]:
        notes.append(
            f"Warning: {folder.path} was graded by {rewards[0]}, {other.path} by {rewards[1]}."
        )
    for text, other_text in _unequal(entry.judge or {}, baseline.judge or {}):
        note = (
            f"No difference for {folder.path}, which was not judged as {other.path} was: {text}, "
            f"there {other_text}."
        )
        return ["-", ""], [*notes, note]
    paired = paired_difference(entry.values, baseline.values)
    if not paired.num_common:
        return ["-", "0"], notes
    sign = "-" if math.copysign(1, paired.difference) < 0 else "+"
    cell = sign + plus_minus(abs(paired.difference), paired.stderr)
    return [cell + (" *" if paired.is_clear else ""), COUNT(paired.num_common)], notes


def _unequal(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`name value` of both sides, for what differs."""

    def text(side: Mapping[str, Any], name: str) -> str:
        return f"{name} {json.dumps(side.get(name), ensure_ascii=False)}"

    names = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    return [(text(here, name), text(there, name)) for name in names]
