"""leaderboard/README.md, made from the rules, the submissions and page.md.jinja."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from trl_r1zero.evaluation.markdown import inline, table

from .rules import BOARDS, Board
from .submission import PLOT_FILE, SUBMISSION_FILE, compare_submissions, judge


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
        rows.append(
            [
                str(place),
                entry.link,
                f"{about['accuracy']:.2%} ± {about['accuracy_stderr']:.2%}",
                f"{about['seconds'] / seconds:.2f}",
                str(about["grpo_steps"]),
                machine,
                environment["started"][:10],
                f"`{commit[:10]}{'+' if commit.endswith('+') else ''}`",
                f"[plot]({entry.folder}/{PLOT_FILE})",
            ]
        )
    header = f",entry,accuracy ± standard error,{unit},GRPO steps,hardware,date,commit,curve"
    return "\n".join(table(header.split(","), rows)) if rows else ""
