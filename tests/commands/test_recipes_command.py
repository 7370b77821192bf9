"""`trl-r1zero recipes` and `completion`, in a clone and as a wheel has them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import REPOSITORY

from trl_r1zero import cli
from trl_r1zero.commands import quickstart
from trl_r1zero.commands.completion import SHELLS, complete
from trl_r1zero.recipe.bundled import LAUNCH_CONFIGS, RECIPES, names, summary
from trl_r1zero.recipe.yaml_files import read_recipe


def shown(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_every_recipe_and_configuration_has_a_line(capsys):
    lines = {" ".join(line.split()) for line in shown(capsys, "recipes").splitlines()}
    for folder in (RECIPES, LAUNCH_CONFIGS):
        for name in names(folder):
            assert f"{name} {summary(folder / f'{name}.yaml')}" in lines
    assert "qwen2.5-math-1.5b/grpo-lr_1e-4 Which learning rate? Ten times the default." in lines


def test_the_first_sentence_of_each_file_says_what_it_is():
    for folder in (RECIPES, LAUNCH_CONFIGS):
        for name in names(folder):
            assert 8 < len(summary(folder / f"{name}.yaml")) < 160, name


@pytest.mark.parametrize("name", names(RECIPES))
def test_a_copy_is_the_same_recipe(name, capsys, tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text(shown(capsys, "recipes", name))
    values = [(one.key, one.value) for one in read_recipe(copy)]
    assert values == [(one.key, one.value) for one in read_recipe(RECIPES / f"{name}.yaml")]


def test_an_unknown_recipe(capsys):
    with pytest.raises(SystemExit):
        cli.main(["recipes", "quickstart/gpro"])
    assert "there is no recipe quickstart/gpro; did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["experiments/clip", "recipes/experiments/clip.yaml"])
def test_an_experiment_by_name(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert "12 runs" in shown(capsys, "sweep", name, "--dry-run", "--seeds", *"012345")


def test_a_wheel_has_what_a_clone_has(tmp_path):
    """The files as the build puts them together, seen from elsewhere."""
    build, elsewhere = tmp_path / "build", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "egg").mkdir()
    steps = ["egg_info", "--egg-base", str(tmp_path / "egg"), "build_py", "--build-lib", str(build)]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *steps], cwd=REPOSITORY, check=True, capture_output=True
    )
    listed = []
    for folder in (build, REPOSITORY):
        done = subprocess.run(
            [sys.executable, "-m", "trl_r1zero", "recipes"],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        listed.append(done.stdout)
    assert listed[0] == listed[1]
    package = build / "trl_r1zero"
    assert (package / "recipes" / "grpo.py").is_file()  # which a sweep starts
    assert (package / "commands" / "help" / "grpo.txt").is_file()
    assert not list(build.rglob("*.pyc"))


# The quickstart


def test_the_quickstart_does_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    inputs, sft, grpo = quickstart.commands(seed=3)
    assert Path(inputs[0]).is_file()
    assert inputs[1:] == ["--output_dir", "runs/quickstart/inputs"]
    assert sft[2:5] == ["sft", "--config", "quickstart/sft-base_policy"]
    assert grpo[2:] == [
        *("grpo", "--config", "quickstart/grpo", "--seed", "3"),
        *("--output_dir", "runs/quickstart/seed_3", "--resume_from_checkpoint", "auto"),
    ]
    (tmp_path / "runs/quickstart/base_policy/final").mkdir(parents=True)
    (tmp_path / "runs/quickstart/base_policy/final/config.json").touch()
    assert quickstart.commands(seed=3) == [grpo]
    # What the recipes read is what the steps before them have written.
    settings = {one.key: one.value for one in read_recipe(RECIPES / "quickstart/grpo.yaml")}
    assert settings["model_name_or_path"] == "runs/quickstart/base_policy/final"


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gr", ["grpo", "grade"]),
        ("ex", ["expert-iteration"]),
        ("dpo --config ", ["llama-3.1-8b/dpo"]),
        ("sft --config quickstart/sft-f", ["quickstart/sft-filtered"]),
        ("recipes smollm2-135m/g", ["smollm2-135m/grpo"]),
        ("sweep experiments/cl", ["experiments/clip"]),
        ("grpo --accelerate_config z", ["zero2", "zero3"]),
        ("grpo --bf16 ", ["true", "false"]),
        ("grpo --on_bad_row ", ["error", "skip"]),
        ("grpo --rollout_b", ["--rollout_batch_size"]),
        ("expert_iteration --n_ei", ["--n_ei_steps"]),
        ("report --base", ["--baseline"]),
        ("doctor --as", ["--assume"]),
        ("grpo --rollout_batch_size ", []),
        ("completion f", ["fish"]),
        ("nonsense --", []),
    ],
)
def test_completion(line, expected):
    assert complete(line.split(" "), list(cli.commands())) == expected


def test_a_key_is_offered_once():
    assert "--seed" in complete(["grpo", "--seed"], ["grpo"])
    assert "--seed" not in complete(["grpo", "--seed", "1", "--see"], ["grpo"])


def test_bash_completes(tmp_path):
    """As bash does when Tab is pressed."""
    program = tmp_path / "trl-r1zero"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trl_r1zero "$@"\n')
    program.chmod(0o755)
    (tmp_path / "quick.yaml").touch()
    script = (
        'eval "$(trl-r1zero completion bash)"; COMP_WORDS=(trl-r1zero grpo --config quick); '
        'COMP_CWORD=3; _trl_r1zero; printf "%s\\n" "${COMPREPLY[@]}"; complete -p trl-r1zero'
    )
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        *("quickstart/grpo", "quickstart/grpo-server", "quickstart/grpo-short", "quick.yaml"),
        "complete -o bashdefault -o default -F _trl_r1zero trl-r1zero",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_script(shell, capsys):
    assert "trl-r1zero completion words" in shown(capsys, "completion", shell)


def test_an_unknown_shell(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert "unknown shell 'tcsh'" in capsys.readouterr().err
