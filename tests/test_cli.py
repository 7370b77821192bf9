"""`trl-r1zero COMMAND`: what it lists, what it refuses, and that a command gets its arguments."""

import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
from tiny_models import REPOSITORY

import trl_r1zero
from trl_r1zero import cli


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trl_r1zero.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: trl-r1zero COMMAND")
    for name, help_text in cli.COMMANDS.items():
        assert f"  {name} " in shown
        assert help_text in shown


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"trl-r1zero {trl_r1zero.__version__}\n")


def test_an_unknown_command_is_named_with_the_nearest():
    done = run("evla", "--model", "m")
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        "unknown command 'evla'; did you mean 'eval'? Allowed: compare, doctor, eval, grade, "
        "judge, leaderboard, report, serve, sweep." in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_module(name):
    assert find_spec(f"trl_r1zero.commands.{name}") is not None


def test_a_command_gets_the_arguments_behind_it():
    done = run("eval", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: trl-r1zero eval [--config RECIPE.yaml] [--key value ...]")
    assert "\n--model: str, required\n" in done.stdout


def test_the_console_script_is_declared():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["scripts"] == {"trl-r1zero": "trl_r1zero.cli:main"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["eval", "--help"], ["judge", "--help"], ["compare", "--help"]]
)
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys; from trl_r1zero import cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'vllm', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
