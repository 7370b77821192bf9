"""`trl-r1zero chat`: a run's own prompt, sampling and reward; answers and verdicts."""

import io

import pytest
import yaml

from trl_r1zero import cli
from trl_r1zero.commands import chat
from trl_r1zero.commands.chat import settings_of

RECIPE = {
    "model_name_or_path": "somewhere",
    "task": "chain_arithmetic",
    "task_args": {"num_train": 8},
    "prompt": None,
    "reward": None,
    "min_tokens": 4,
    "temperature": 0.7,
    "eval_temperature": 0.5,
    "eval_top_p": 1.0,
    "max_completion_length": 6,
    "eval_max_completion_length": None,
}


@pytest.fixture
def run(tiny_model_folder, tmp_path):
    """A run that is at its end, whose model is the tiny one."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "final").symlink_to(tiny_model_folder)
    (folder / "best").symlink_to(tiny_model_folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def shown(capsys, *arguments: str) -> list[str]:
    assert cli.main(["chat", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_settings_are_those_of_the_runs_validation(run):
    expected = {
        "task": "chain_arithmetic",
        "task_args": {"num_train": 8},
        "min_tokens": 4,
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 6,
    }
    assert settings_of(str(run)) == {"model": str(run / "final"), **expected}
    assert settings_of(str(run / "best")) == {"model": str(run / "best"), **expected}
    (run / "final").unlink()
    assert settings_of(str(run))["model"] == str(run / "best")


def test_other_models_have_no_settings(tiny_model_folder):
    for name in (str(tiny_model_folder), "Qwen/Qwen2.5-Math-1.5B"):
        assert settings_of(name) == {"model": name}


def test_a_run_on_instructions_is_asked_in_the_alpaca_template(run):
    (run / "recipe.yaml").write_text("seq_length: 512\n")
    settings = settings_of(str(run))
    assert (settings["task"], settings["prompt"]) == ("alpaca_eval", "alpaca")


def test_a_run_without_a_model(run, capsys):
    for name in ("final", "best"):
        (run / name).unlink()
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", str(run), "1 + 1"])
    assert caught.value.code == 2
    assert "has no model yet" in capsys.readouterr().err


def test_an_answer_and_its_verdict(run, capsys):
    lines = shown(capsys, str(run), "3 + 4", "--truth", "7")
    assert lines[0] == f"{run / 'final'}, prompt chain_arithmetic, temperature 0.5"
    assert lines[-1].startswith("  wrong: ")
    assert "answer_reward 0" in lines[-1]
    assert shown(capsys, str(run), "3 + 4", "--truth", "7") == lines  # one seed, one answer
    assert len(shown(capsys, str(run), "3 + 4")) < len(lines)


def test_several_answers(run, capsys):
    lines = shown(capsys, str(run), "--question", "3 + 4", "--n", "3", "--seed", "1")
    assert [line[:8] for line in lines if line.startswith("[")] == [
        "[1 of 3]",
        "[2 of 3]",
        "[3 of 3]",
    ]


def test_a_task_that_nothing_grades(tiny_model_folder, capsys):
    arguments = ("--task", "alpaca_eval", "--max_tokens", "5", "--truth", "yes")
    lines = shown(capsys, str(tiny_model_folder), "Hello?", *arguments)
    assert lines[-1].startswith("  nothing grades answers to this task")


def test_questions_that_are_piped_in(run, capsys, monkeypatch):
    monkeypatch.setattr(chat.sys, "stdin", io.StringIO("1 + 1\n2 + 2\n"))
    assert len(shown(capsys, str(run), "--temperature", "0")) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the run or model comes first"),
        (["--question", "1 + 1"], "the run or model comes first"),
        (["m", "--data", "x.jsonl"], "unknown key 'data'"),
        (["m", "--model", "n"], "--model is no key here; the run or model comes first"),
        (["m", "--questoin", "1"], "unknown key 'questoin'; did you mean 'question'?"),
        (["a/b/c", "1 + 1"], "there is no folder 'a/b/c'"),
        (["m", "--task", "[math, gsm8k]"], "expected one task"),
    ],
)
def test_what_cannot_be_asked(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
