"""One real submission for all tests of the leaderboard: launched, killed, and started again."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import kill, launch, start
from leaderboard_runs import RECIPE, SCRIPT, events_of, make_board_model

from trl_r1zero.leaderboard.clock import STEP


@dataclass(frozen=True)
class KilledRun:
    """A run that was killed and started again.

    Attributes:
        folder: Its folder, with the submission.
        launched_at, killed_at, restarted_at: Seconds since 1970.
        stdout: What the second start printed.
    """

    folder: Path
    launched_at: float
    killed_at: float
    restarted_at: float
    stdout: str


@pytest.fixture(scope="session")
def board_model(tmp_path_factory) -> Path:
    return make_board_model(tmp_path_factory.mktemp("board_model"))


@pytest.fixture(scope="session")
def killed_run(board_model, tmp_path_factory) -> KilledRun:
    folder = tmp_path_factory.mktemp("leaderboard") / "run"
    launched_at = time.time()
    process = start(RECIPE, folder, board_model, script=SCRIPT)
    try:
        deadline = time.monotonic() + 200
        while sum(event["event"] == STEP for event in events_of(folder)) < 3:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run takes too long to begin"
            time.sleep(0.02)
    finally:
        kill(process)
    killed_at = time.time()
    time.sleep(2.0)
    restarted_at = time.time()
    done = launch(RECIPE, folder, board_model, script=SCRIPT)
    assert done.returncode == 0, done.stderr[-4000:]
    return KilledRun(folder, launched_at, killed_at, restarted_at, done.stdout)


@pytest.fixture
def submission(killed_run, tmp_path) -> Path:
    """A copy of the submission, to be changed."""
    return Path(shutil.copytree(killed_run.folder / "submission", tmp_path / "submission"))
