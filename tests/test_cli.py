"""`trl-r1zero COMMAND`: what it lists, what it refuses, and that a command gets its arguments."""

import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
from tiny_models import REPOSITORY

import trl_r1zero
from trl_r1zero import cli
from trl_r1zero.commands import stored_help


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trl_r1zero", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: trl-r1zero COMMAND")
    for name, help_text in cli.commands().items():
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
        "unknown command 'evla'; did you mean 'eval'? Allowed: chat, compare, completion, d"
        in done.stderr
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


@pytest.mark.parametrize("name", ["", *cli.commands()])
def test_help_comes_without_heavy_imports(name):
    """In tenths of a second, which torch alone takes several times."""
    code = (
        "import sys; from trl_r1zero import cli\n"
        f"try: status = cli.main({[*filter(None, [name]), '--help']!r})\n"
        "except SystemExit as exit: status = exit.code\n"
        "heavy = {'torch', 'vllm', 'trl', 'transformers', 'sympy', 'matplotlib'}\n"
        "print(status or 0, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert shown[-1] == "0 []"
    assert len(shown) > 3


@pytest.mark.parametrize("command", stored_help.KEYED)
def test_the_kept_help_is_what_the_command_says(command):
    """`python -m trl_r1zero.commands.stored_help` writes it anew."""
    assert stored_help.help_text(command) == stored_help.made_help(command)


def test_help_for_other_versions_is_made_anew(monkeypatch, tmp_path):
    (tmp_path / "judge.txt").write_text("# trl 1.0.0, transformers 5.17.0\nof another version\n")
    monkeypatch.setattr(stored_help, "FOLDER", tmp_path)
    assert "--judge_url: str, required" in stored_help.help_text("judge")


def test_a_reader_that_closes_early_ends_a_command_quietly():
    command = f"{shlex.quote(sys.executable)} -m trl_r1zero recipes | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
