"""leaderboard/README.md, made from the rules and the submissions, so that it cannot drift."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.evaluation.markdown import inline, table

from .plot import time_unit
from .rules import BOARDS, Board
from .submission import PLOT_FILE, SUBMISSION_FILE
from .verify import compare_submissions, read_submission, verify

# Public reports on Qwen2.5-Math-1.5B and MATH. One run each, by different people with different
# code; none was repeated with other seeds, and none was made by this project.
PUBLIC_FIGURES = (
    ("zero-shot, r1_zero prompt", "2 to 6%"),
    ("SFT on all traces, on filtered ones", "42 to 43%, 44 to 52%"),
    ("expert iteration", "47 to 49%"),
    ("GRPO, a first baseline", "40%"),
    (
        "GRPO, 200 on-policy steps at learning rate 3e-5, on 1,024 problems",
        "about 71%, in about 100 minutes on one H100",
    ),
    (
        "GRPO, 100 steps at learning rate 3e-6, 1e-5, 1.5e-5, 3e-5",
        "5%, 48%, 57%, 68%; 1e-4 collapses",
    ),
    ("leaderboard of 4 hours on 2 H100: median, best verified, record", "54%, 65.9%, 68.75%"),
)


@dataclass(frozen=True)
class Listed:
    """A submission in the table.

    Attributes:
        folder: Where it is, relative to the page.
        about: What its submission.json states.
        broken: The rules that it breaks; "cannot be read" for a folder that is no submission.
    """

    folder: str
    about: dict[str, Any]
    broken: tuple[str, ...]


def read_submissions(folder: Path) -> list[Listed]:
    """The submissions below `<folder>/submissions/<board>/`, verified."""
    listed = []
    for path in sorted(folder.glob(f"submissions/*/*/{SUBMISSION_FILE}")):
        place = path.parent.relative_to(folder).as_posix()
        try:
            about = read_submission(path.parent)
            broken = tuple(check.rule for check in verify(path.parent) if not check.holds)
        except ValueError:  # one folder does not keep the others from being listed
            about = {"board": path.parts[-3], "entry": path.parts[-2]}
            broken = ("cannot be read",)
        listed.append(Listed(place, about, broken))
    return listed


def leaderboard_page(submissions: Sequence[Listed]) -> str:
    """The page, as Markdown."""
    blocks = [
        "# Leaderboard",
        "Who gets the highest validation accuracy in a fixed time? This page is written by "
        "`trl-r1zero leaderboard table`, from the rules in the code and from the submissions "
        "beside it; do not edit it by hand. What the rules mean, how the clock counts, and what a "
        "submission holds: [docs/leaderboard.md](../docs/leaderboard.md).",
    ]
    for board in BOARDS.values():
        of_board = [entry for entry in submissions if entry.about["board"] == board.name]
        blocks += _board_section(board, of_board)
    differences = compare_submissions(
        {entry.folder: entry.about for entry in submissions if not entry.broken}
    )
    blocks += [f"**Not comparable:** {difference}." for difference in differences]
    return "\n\n".join([*blocks, _PUBLIC, _public_table(), _TAKE_PART]) + "\n"


def _board_section(board: Board, submissions: Sequence[Listed]) -> list[str]:
    blocks = [f"## {board.title}", "\n".join(f"* {rule}" for rule in rules_in_words(board))]
    valid = [entry for entry in submissions if not entry.broken]
    valid.sort(key=lambda entry: (-entry.about["accuracy"], entry.about["seconds"]))
    if valid:
        blocks.append("\n".join(_table(board, valid)))
    else:
        blocks.append("No submission yet.")
    broken = [entry for entry in submissions if entry.broken]
    if broken:
        lines = [
            f"* [{inline(entry.about['entry'])}]({entry.folder}/{SUBMISSION_FILE}): "
            f"{', '.join(entry.broken)}"
            for entry in broken
        ]
        blocks.append("\n".join(["Not counted, with the rules that are broken:", "", *lines]))
    return blocks


def rules_in_words(board: Board) -> list[str]:
    """The rules of a board, one sentence each."""
    unit, seconds = time_unit(board.budget_seconds)
    known = board.validation_sha256
    if board.model is not None:
        model = f"Training starts from [{board.model}](https://huggingface.co/{board.model})."
    else:
        model = (
            f"Training starts from any {board.architecture} of {board.num_parameters:,} "
            "parameters, such as the quickstart's base policy, whose weights differ from machine "
            "to machine by rounding; their hash is recorded. (Nothing keeps one from training them "
            "before: this board shows how it works, and is no contest.)"
        )
    return [
        f"**Model.** {model}",
        "**Training data.** Whatever has no validation question in it; the hashes of the "
        "questions are submitted.",
        f"**Validation.** All {board.num_problems:,} validation problems of task `{board.task}`, "
        "one response each, by the last weights. "
        + (
            f"The sha256 of questions and answers is `{known}`."
            if known
            else "The sha256 of questions and answers is recorded and compared between "
            "submissions; the code does not know what it has to be."
        ),
        f"**Prompt.** `{board.prompt}`, the sha256 of whose text is `{board.prompt_sha256}`.",
        f"**Sampling.** Temperature {board.temperature:g}, top-p {board.top_p:g}, no top-k, no "
        f"min-p, seed {board.seed}, at most {board.max_tokens:,} new tokens.",
        f"**Reward.** `{board.reward}_reward_fn`, whose answer reward is the accuracy.",
        f"**Time.** {board.budget_seconds / seconds:g} {unit} of wall-clock, from the start of "
        "the process to the last use of a weight, across restarts.",
        "**Hardware.** "
        + (f"At most {board.max_gpus} GPUs." if board.max_gpus else "A CPU, no GPU."),
    ]


def _table(board: Board, submissions: Sequence[Listed]) -> list[str]:
    unit, seconds = time_unit(board.budget_seconds)
    rows = []
    for place, entry in enumerate(submissions, start=1):
        about = entry.about
        hardware = about["facts"]["hardware"]
        gpus = sorted(set(hardware["gpu_names"]))
        machine = (
            f"{hardware['num_gpus']} x {', '.join(gpus)}"
            if hardware["num_gpus"]
            else f"{hardware['num_cpus']} CPUs"
        )
        environment = about["environment"]
        commit = environment["commit"] or "unknown"
        rows.append(
            [
                str(place),
                f"[{inline(about['entry'])}]({entry.folder}/{SUBMISSION_FILE})",
                f"{about['accuracy']:.2%} ± {about['accuracy_stderr']:.2%}",
                f"{about['seconds'] / seconds:.2f}",
                str(about["grpo_steps"]),
                machine,
                environment["started"][:10],
                f"`{commit[:10]}{'+' if commit.endswith('+') else ''}`",
                f"[plot]({entry.folder}/{PLOT_FILE})",
            ]
        )
    header = [
        "",
        "entry",
        "accuracy ± standard error",
        unit,
        "GRPO steps",
        "hardware",
        "date",
        "commit",
        "curve",
    ]
    return table(header, rows)


def _public_table() -> str:
    return "\n".join(table(["what", "accuracy"], [list(row) for row in PUBLIC_FIGURES]))


_PUBLIC = """## Public figures

What others have reported for Qwen2.5-Math-1.5B on MATH. Each is one run with one seed, of other code, and was not
checked here; the standard error of an accuracy near 65% is 0.65 points on 5,000 problems and 1.4 on 1,024. Entries above 60%
whose settings can be read had bfloat16 weights, learning rates of 2.5e-5 to 5e-5, groups of 8, 256 rollouts, 1 to 2
updates per rollout batch and no KL term."""  # noqa: E501

_TAKE_PART = """## Take part

```bash
make leaderboard-demo   # the embedded board: four minutes on two CPU cores, once there is a base policy

accelerate launch --config_file accelerate_configs/two_gpu.yaml leaderboard/run.py \\
  --config leaderboard/qwen2.5-math-1.5b.yaml      # the MATH board; again, to go on after a crash

trl-r1zero leaderboard verify runs/leaderboard/demo/submission
```

Copy the folder `submission` of your run to `leaderboard/submissions/BOARD/NAME`, run `trl-r1zero leaderboard table`,
and open a pull request with both. A record is run again by somebody else before it counts."""  # noqa: E501
