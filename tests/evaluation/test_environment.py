"""The versions, the commit and the machine that a run depended on."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import trl_r1zero
from trl_r1zero.evaluation.environment import environment, package_versions


def test_environment():
    facts = environment(num_processes=2)
    assert facts["packages"]["torch"] == version("torch")
    assert facts["num_processes"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", facts["started"])


def test_what_is_not_installed_has_no_version():
    assert package_versions()["trl-r1zero"] == trl_r1zero.__version__
    assert None not in package_versions().values()


def test_the_commit_is_that_of_the_checkout():
    def git(*command: str) -> str:
        folder = str(Path(trl_r1zero.__file__).parent)
        done = subprocess.run(
            ["git", "-C", folder, *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    commit = environment()["commit"]
    if head and git("ls-files", "."):
        # Marked if any file of the package is changed, not only one near the code that looks.
        assert commit == (f"{head}+" if git("status", "--porcelain", ".") else head)
    else:
        assert commit is None
