"""`trl-r1zero init`: a project that trains, passes its own test, and learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import REPOSITORY

from trl_r1zero import cli
from trl_r1zero.trainers import read_metrics

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "my_project"
    assert cli.main(["init", str(folder)]) == 0
    return folder


def test_it_has_what_one_edits(project):
    names = ["README.md", "data.jsonl", "grpo.yaml", "model", "my_reward.py", "my_task.py"]
    assert sorted(path.name for path in project.iterdir() if path.name[0] != ".")[:8] == [
        *(*names, "prompt.txt", "test_project.py")
    ]
    readme = (project / "README.md").read_text()
    assert readme.startswith("# my_project\n")
    assert "{" not in readme


def test_its_own_test_passes(project):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run(project, command)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "12 passed" in done.stdout


def test_it_learns(project):
    command = [sys.executable, "-m", "trl_r1zero", "grpo", "--config", "grpo.yaml"]
    done = run(project, command)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in read_metrics(project / "runs" / "first") if "eval_accuracy" in line]
    assert lines[0]["eval_accuracy"] <= 0.7  # of ten answers, which are right with 0.4 each
    assert lines[-1]["eval_accuracy"] >= 0.8


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit) as caught:
        cli.main(["init", str(tmp_path)])
    assert caught.value.code == 2
    assert "is there already, and not empty" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1
