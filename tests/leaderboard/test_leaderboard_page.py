"""leaderboard/README.md: made from rules and submissions, and up to date."""

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
from leaderboard_runs import change_lines, reseal
from tiny_models import REPOSITORY

from trl_r1zero.commands.leaderboard import main
from trl_r1zero.leaderboard import BOARDS, verify
from trl_r1zero.leaderboard.submission import (
    FILES,
    leaderboard_page,
    read_submissions,
    without_places,
)

FOLDER = REPOSITORY / "leaderboard"
SUBMITTED = sorted(path.parent for path in FOLDER.glob("submissions/*/*/submission.json"))


def test_the_page_is_what_the_command_writes():
    """If not: `trl-r1zero leaderboard table`."""
    assert (FOLDER / "README.md").read_text() == leaderboard_page(read_submissions(FOLDER))


def test_the_page_s_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+?)\)", (FOLDER / "README.md").read_text())
    assert targets
    for target in targets:
        assert target.startswith("https://") or (FOLDER / target).exists(), target


@pytest.mark.parametrize("folder", SUBMITTED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_is_submitted_holds_every_rule(folder):
    assert [check for check in verify(folder) if not check.holds] == []
    assert folder.parent.name == json.loads((folder / "submission.json").read_text())["board"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "submission.json"])
    for path in folder.iterdir():
        if path.suffix != ".png":
            text = path.read_text()
            assert without_places(text) == text
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|data|mnt)/", text), path.name


def test_there_is_a_submission_to_look_at():
    assert SUBMITTED


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_rule_is_on_the_page(board):
    (text,) = re.findall(rf"## {board.title}\n(.*?)\n## ", leaderboard_page([]), re.DOTALL)
    for fact in (
        board.model or f"{board.num_parameters:,} parameters",
        board.prompt_sha256,
        f"{board.num_problems:,} validation problems",
        board.validation_sha256 or "recorded and compared",
        f"at most {board.max_tokens:,} new tokens",
        f"`{board.reward}_reward_fn`",
        f"{board.budget_seconds / board.time_unit[1]:g} {board.time_unit[0]}",
        f"{board.max_gpus} GPUs" if board.max_gpus else "no GPU",
    ):
        assert fact in text


@pytest.fixture
def folder(submission, tmp_path):
    """A leaderboard of two submissions: one that holds every rule, and one that took too long."""
    root = tmp_path / "leaderboard"
    for name in ("right", "late"):
        shutil.copytree(submission, root / "submissions" / "embedded" / name)
    late = root / "submissions" / "embedded" / "late"
    change_lines(late / "clock.jsonl", lambda events: events[-1].update(time=4e9))
    reseal(late)
    return root


def test_only_submissions_that_hold_every_rule_are_ranked(folder, capsys):
    assert main(["table", "--folder", str(folder)]) == 0
    assert "submissions: 2, of which 1 hold every rule" in capsys.readouterr().out
    page = (folder / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| 1 ")]
    assert "submissions/embedded/right/submission.json" in row
    assert "* [a test](submissions/embedded/late/submission.json): seconds" in page
    assert "\n| 2 " not in page


def test_submissions_that_cannot_be_compared_are_named_on_the_page(folder):
    (second,) = [entry for entry in read_submissions(folder) if not entry.broken]
    first = replace(second, folder="other", about=copy.deepcopy(second.about))
    second.about["facts"]["validation"]["sha256"] = "0" * 64
    assert "**Not comparable:** board embedded" in leaderboard_page([first, second])


def test_a_board_without_submissions_says_so(tmp_path):
    page = leaderboard_page(read_submissions(tmp_path))
    assert page.count("No submission yet.") == len(BOARDS)
    assert "68.75%" in page
    assert "one run with one seed" in page


def test_a_folder_that_cannot_be_read_keeps_no_other_from_the_page(folder):
    (folder / "submissions" / "embedded" / "late" / "submission.json").write_text("{")
    assert main(["table", "--folder", str(folder)]) == 0
    page = (folder / "README.md").read_text()
    assert "* [late](submissions/embedded/late/submission.json): cannot be read" in page
    assert "| 1 " in page
