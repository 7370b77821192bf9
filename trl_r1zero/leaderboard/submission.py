"""A submission: a folder that the runner writes, and that is verified by its own files alone, with
no model, no data and no network (docs/leaderboard.md)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from trl_r1zero.common.run_files import METRICS_FILE
from trl_r1zero.data.prompts import PLACEHOLDER, load_prompt
from trl_r1zero.evaluation import files
from trl_r1zero.evaluation.markdown import inline, table
from trl_r1zero.evaluation.metrics import is_number, mean, standard_error
from trl_r1zero.rewards import REWARDS, is_correct

from .clock import CLOCK_FILE, Event
from .plot import plot_submission
from .rules import BOARDS, Board, Check, check_facts, check_settings, get_board, rows_facts

FORMAT = 2
SUBMISSION_FILE = "submission.json"
RESPONSES_FILE = "responses.jsonl"
RECIPE_FILE = "recipe.yaml"
PLOT_FILE = "accuracy.png"
# Those whose sha256 is in submission.json.
FILES = (RESPONSES_FILE, CLOCK_FILE, METRICS_FILE, RECIPE_FILE, PLOT_FILE)
# Columns of a table of generations that a submission keeps.
_COLUMNS = (
    *("prompt", "response", "ground_truth", "reward", "format_reward", "answer_reward"),
    *("length", "truncated"),
)


class SubmissionError(ValueError):
    """A folder that is not a submission, or whose files cannot be read."""


def write_submission(run_folder: Path, board: Board, entry: str, events: Sequence[Event]) -> Path:
    """Write the submission of a run whose clock has ended into `<run_folder>/submission`."""
    folder = run_folder / "submission"
    folder.mkdir(exist_ok=True)
    generations = run_folder / "evaluations" / f"grpo_step_{events[-1]['grpo_step']:05d}.jsonl"
    rows = [{name: row[name] for name in _COLUMNS if name in row} for row in _rows(generations)]
    (folder / RESPONSES_FILE).write_bytes(b"".join(map(files.json_line, rows)))
    for name in (CLOCK_FILE, METRICS_FILE, RECIPE_FILE):
        text = (run_folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(without_places(text), encoding="utf-8")
    plot_submission(events, board, entry, folder / PLOT_FILE)
    environment = json.loads((run_folder / "environment.json").read_bytes())
    del environment["platform"]  # the kernel of one machine
    about = {
        "format": FORMAT,
        "board": board.name,
        "entry": entry,
        **results(rows, events),
        "facts": events[0]["facts"],
        "environment": environment,
        "files": file_hashes(folder),
    }
    # The last file, and at once: a submission is finished if it is there.
    text = without_places(files.json_text(about).decode())
    files.write_atomically(folder / SUBMISSION_FILE, text.encode())
    return folder


def results(rows: Sequence[Mapping[str, Any]], events: Sequence[Event]) -> dict[str, Any]:
    """The numbers of a submission, from its graded responses and its clock."""
    correct = [float(is_correct(row)) for row in rows]
    return {
        "accuracy": mean(correct),
        "accuracy_stderr": standard_error(correct),
        "num_problems": len(rows),
        "seconds": round(events[-1]["time"] - events[0]["process_started"], 3),
        "grpo_steps": events[-1]["grpo_step"],
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each of `FILES` that is there."""
    return {n: files.file_sha256(folder / n) for n in FILES if (folder / n).is_file()}


def without_places(text: str) -> str:
    """Text without this machine's folders: checkout and working folder are `.`, home is `~`."""
    checkout = Path(__file__).resolve().parents[2]
    for place, short in ((checkout, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if place != Path("/"):
            text = re.sub(rf"(?<![\w.~-]){re.escape(str(place))}(?![\w.-])", short, text)
    return text


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def read_submission(folder: Path) -> dict[str, Any]:
    """What a folder's submission.json states; SubmissionError if there is none of this format."""
    path = folder / SUBMISSION_FILE
    if not path.is_file():
        raise SubmissionError(f"{path} does not exist; give the folder of a submission")
    numbers = ("accuracy", "accuracy_stderr", "seconds", "grpo_steps")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        known = about["format"] == FORMAT and all(is_number(about[name]) for name in numbers)
    except (LookupError, TypeError, ValueError):
        known = False
    if not known:
        raise SubmissionError(
            f"{path} is not of format {FORMAT}; unless it was changed by hand, verify it with the "
            "version of trl-r1zero that wrote it"
        )
    return about


def verify(folder: str | Path) -> list[Check]:
    """Every rule, checked by a submission's files; only `files`, where one of them was changed.
    SubmissionError if the folder has no submission that can be read."""
    folder = Path(folder)
    about = read_submission(folder)
    try:
        changes = files.differing(about["files"], file_hashes(folder))
        check = _same("files", f"the sha256 in {SUBMISSION_FILE}", changes)
        return [check, *([] if changes else _check_contents(folder, about))]
    except (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        raise SubmissionError(
            f"{folder} is not as the runner writes it ({type(error).__name__}: {error}); copy the "
            "folder of the run again"
        ) from error


def _same(rule: str, allowed: str, differences: Sequence[str]) -> Check:
    return Check(rule, allowed, "; ".join(differences) or "the same", not differences)


def _check_contents(folder: Path, about: Mapping[str, Any]) -> list[Check]:
    board = get_board(about["board"])
    rows = _rows(folder / RESPONSES_FILE)
    recipe = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    before, after = load_prompt(board.prompt).template.split(PLACEHOLDER)
    answered = [
        (row["prompt"].removeprefix(before).removesuffix(after), row["ground_truth"])
        for row in rows
    ]
    other = sum(not r["prompt"].startswith(before) or not r["prompt"].endswith(after) for r in rows)
    longer = sum(row["length"] > board.max_tokens for row in rows)
    grade = REWARDS[board.reward]
    wrong = sum(not grade(r["response"], r["ground_truth"]).items() <= r.items() for r in rows)
    found = results(rows, _rows(folder / CLOCK_FILE))
    differences = files.differing({name: about[name] for name in found}, found)
    return [
        *check_facts(board, {**about["facts"], "validation": rows_facts(answered)}),
        *check_settings(board, recipe),
        Check(
            "responses",
            f"to the prompt, of at most {board.max_tokens:,} tokens, graded by {board.reward}",
            f"{len(rows):,}, {other} to another prompt, {longer} longer, {wrong} graded otherwise",
            not (other or longer or wrong),
        ),
        _same("results", "those of the responses and the clock", differences),
        Check(
            "seconds",
            f"{board.budget_seconds:,.0f} from the start of the process to the end of the full "
            "evaluation",
            f"{found['seconds']:,.1f}",
            found["seconds"] <= board.budget_seconds,
        ),
    ]


def judge(folder: str | Path) -> tuple[dict[str, Any], list[str], str]:
    """What a submission states, the rules that it breaks, and all checks as text to read."""
    about, checks = read_submission(Path(folder)), verify(folder)
    broken = [check.rule for check in checks if not check.holds]
    verdict = f"BROKEN: {', '.join(broken)}" if broken else "every rule holds"
    rows = [[c.rule, c.allowed, c.evidence, "yes" if c.holds else "NO"] for c in checks]
    lines = [
        f"{about['entry']} on board {about['board']}: accuracy {about['accuracy']:.4f} ± "
        f"{about['accuracy_stderr']:.4f}, {about['seconds']:,.0f} seconds; {verdict}",
        *table(["rule", "allowed", "found", "holds"], rows),
    ]
    return about, broken, "\n".join(lines)


def compare_submissions(submissions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What should be the same in submissions (name -> submission.json), and is not, in words."""
    differences = []
    for board in BOARDS.values():
        facts = {name: a["facts"] for name, a in submissions.items() if a["board"] == board.name}
        same = {"validation problems": {f["validation"]["sha256"] for f in facts.values()}}
        if board.model is not None:
            same["weights at the start"] = {str(f["model"]["weights"]) for f in facts.values()}
        differences += [
            f"board {board.name}: the {what} are not the same in {', '.join(facts)}"
            for what, values in same.items()
            if len(values) > 1
        ]
    return differences


# The page of all submissions


@dataclass(frozen=True)
class Listed:
    """A submission in the table."""

    folder: str  # relative to the page
    about: dict[str, Any]  # what its submission.json states
    broken: list[str]  # the rules; "cannot be read" for a folder that is not a submission

    @property
    def link(self) -> str:
        return f"[{inline(self.about['entry'])}]({self.folder}/{SUBMISSION_FILE})"


def read_submissions(folder: Path) -> list[Listed]:
    """The submissions below `<folder>/submissions/<board>/`, verified."""
    listed = []
    for path in sorted(folder.glob(f"submissions/*/*/{SUBMISSION_FILE}")):
        try:
            about, broken, _ = judge(path.parent)
        except ValueError:  # one folder does not keep the others from being listed
            about = {"board": path.parts[-3], "entry": path.parts[-2]}
            broken = ["cannot be read"]
        listed.append(Listed(path.parent.relative_to(folder).as_posix(), about, broken))
    return listed


def leaderboard_page(submissions: Sequence[Listed]) -> str:
    """The page, as Markdown."""
    sections = []
    for board in BOARDS.values():
        of_board = [entry for entry in submissions if entry.about["board"] == board.name]
        broken = [entry for entry in of_board if entry.broken]
        sections.append((board, _ranked(board, of_board), broken))
    valid = {entry.folder: entry.about for entry in submissions if not entry.broken}
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    text = Path(__file__).with_name("page.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        sections=sections, differences=compare_submissions(valid)
    )


def _ranked(board: Board, submissions: Sequence[Listed]) -> str:
    """The table of a board's submissions that hold every rule; empty without any."""
    unit, seconds = board.time_unit
    valid = [entry for entry in submissions if not entry.broken]
    valid.sort(key=lambda entry: (-entry.about["accuracy"], entry.about["seconds"]))
    rows = []
    for place, entry in enumerate(valid, start=1):
        about = entry.about
        hardware, environment = about["facts"]["hardware"], about["environment"]
        commit = environment["commit"] or "unknown"
        machine = f"{hardware['num_cpus']} CPUs"
        if hardware["num_gpus"]:
            machine = f"{hardware['num_gpus']} x {', '.join(sorted(set(hardware['gpu_names'])))}"
        accuracy = f"{about['accuracy']:.2%} ± {about['accuracy_stderr']:.2%}"
        time, steps = f"{about['seconds'] / seconds:.2f}", str(about["grpo_steps"])
        short = f"`{commit[:10]}{'+' if commit.endswith('+') else ''}`"
        what = [machine, environment["started"][:10], short, f"[plot]({entry.folder}/{PLOT_FILE})"]
        rows.append([str(place), entry.link, accuracy, time, steps, *what])
    header = f",entry,accuracy ± standard error,{unit},GRPO steps,hardware,date,commit,curve"
    return "\n".join(table(header.split(","), rows)) if rows else ""
