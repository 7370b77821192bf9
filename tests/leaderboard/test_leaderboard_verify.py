"""Each rule is broken on a copy of a valid submission, and is named."""

import json
import shutil
import socket

import pytest
import yaml
from leaderboard_runs import broken_rules, change_lines, reseal

from trl_r1zero.commands.leaderboard import main
from trl_r1zero.leaderboard import SubmissionError, verify
from trl_r1zero.leaderboard.submission import (
    compare_submissions,
    file_hashes,
    read_submission,
    without_places,
)


def set_fact(*keys, value):
    def change(facts):
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


def test_a_valid_submission_holds(submission, capsys):
    assert broken_rules(submission) == []
    assert main(["verify", str(submission)]) == 0
    assert "every rule holds" in capsys.readouterr().out


def test_it_is_verified_without_model_data_or_network(submission, tmp_path, monkeypatch):
    """From another folder, in a process that may not open a connection."""

    def refuse(*arguments, **settings):
        raise OSError("no network here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submission"]
    assert all(check.holds for check in verify(submission))


# Facts of submission.json, and the settings of recipe.yaml


@pytest.mark.parametrize(
    ("keys", "value", "rule"),
    [
        (("model", "num_parameters"), 700_000, "parameters"),
        (("model", "architecture"), "LlamaForCausalLM", "architecture"),
        (("num_validation_questions",), 1, "validation questions in train_data"),
        (("prompt",), "0" * 64, "prompt"),
        (("reward",), "math", "reward"),
        (("hardware", "num_gpus"), 1, "GPUs"),
    ],
)
def test_a_fact_that_a_rule_does_not_allow_is_named(submission, keys, value, rule):
    reseal(submission, set_fact(*keys, value=value))
    assert broken_rules(submission) == [rule]


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_temperature": 0.6},
        {"eval_top_p": 0.9},
        {"top_k": 20},
        {"min_p": 0.1},
        {"eval_seed": 1},
        {"eval_max_completion_length": 128},
        {"task": "countdown"},
        {"model_init_kwargs": {"subfolder": "trained"}},
    ],
)
def test_a_setting_that_a_rule_does_not_allow_is_named(submission, settings):
    path = submission / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))
    reseal(submission)
    assert broken_rules(submission) == list(settings)


# Responses


def duplicate(rows):
    rows[1] = dict(rows[0])


ALL_PROBLEMS = "validation sha256"
RESPONSES = [
    (lambda rows: rows.pop(), ["validation problems", ALL_PROBLEMS]),
    (duplicate, [ALL_PROBLEMS]),
    (lambda rows: rows[3].update(ground_truth="7"), [ALL_PROBLEMS]),
    # A changed prompt is no question of the validation set either.
    (lambda rows: rows[3].update(prompt=f"Hint. {rows[3]['prompt']}"), [ALL_PROBLEMS, "responses"]),
    (lambda rows: rows[3].update(length=65), ["responses"]),
    (lambda rows: rows[3].update(reward=1.0, answer_reward=1.0), ["responses"]),
    (lambda rows: rows[3].update(format_reward=1.0), ["responses"]),
]


@pytest.mark.parametrize(("change", "rules"), RESPONSES)
def test_a_changed_response_is_named(submission, change, rules):
    change_lines(submission / "responses.jsonl", change)
    reseal(submission)
    assert broken_rules(submission) == rules


# Time


def test_a_run_that_took_too_long_is_named(submission):
    def late(events):
        events[-1]["time"] += 3600

    change_lines(submission / "clock.jsonl", late)
    reseal(submission)
    assert broken_rules(submission) == ["seconds"]


@pytest.mark.parametrize(("key", "value"), [("accuracy", 0.9), ("seconds", 1.0), ("grpo_steps", 5)])
def test_what_is_only_stated_is_named(submission, key, value):
    path = submission / "submission.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    (check,) = [check for check in verify(submission) if not check.holds]
    assert check.rule == "results"
    assert check.evidence.startswith(f"{key}: {value} there")


# Files


@pytest.mark.parametrize("name", ["responses.jsonl", "clock.jsonl", "accuracy.png", "recipe.yaml"])
def test_a_file_that_was_changed_is_named(submission, name):
    with (submission / name).open("ab") as file:
        file.write(b"\n")
    assert broken_rules(submission) == ["files"]


def test_a_file_that_is_missing_is_named(submission, capsys):
    (submission / "metrics.jsonl").unlink()
    assert broken_rules(submission) == ["files"]
    assert main(["verify", str(submission)]) == 1
    assert "metrics.jsonl: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe.yaml", "a: [b"),
        ("recipe.yaml", "5"),
        ("clock.jsonl", ""),
        ("responses.jsonl", '{"prompt": 5}\n'),
    ],
)
def test_files_that_cannot_be_read_are_an_error(submission, name, text):
    (submission / name).write_text(text)
    about = read_submission(submission)
    about["files"] = file_hashes(submission)
    (submission / "submission.json").write_text(json.dumps(about))
    with pytest.raises(SubmissionError, match="is not as the runner writes it"):
        verify(submission)


def test_a_folder_without_a_submission_is_an_error(tmp_path, capsys):
    with pytest.raises(SubmissionError, match=r"submission\.json does not exist"):
        verify(tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 2, "accuracy": true}'],
)
def test_a_submission_that_cannot_be_read_is_an_error(submission, text):
    (submission / "submission.json").write_text(text)
    with pytest.raises(SubmissionError, match="is not of format 2"):
        verify(submission)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("facts", {}, "not as the runner writes it"),
        ("accuracy", None, "not of format 2"),
        ("board", ["embedded"], "not as the runner writes it"),
        ("board", "moon", "moon"),
    ],
)
def test_a_value_of_another_kind_is_an_error(submission, key, value, message, capsys):
    path = submission / "submission.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=message):
        verify(submission)
    assert main(["verify", str(submission)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_folders_of_the_machine_are_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    for text, without in [
        ("eval_split: train", "eval_split: train"),
        (f"output_dir: {tmp_path}/runs/a  # x", "output_dir: ./runs/a  # x"),
        (f"'{tmp_path}'", "'.'"),
        (f"{tmp_path}s/a", f"{tmp_path}s/a"),
        ("model: /home/someone/größe", "model: ~/größe"),
        ("model: /mnt/home/someone/a", "model: /mnt/home/someone/a"),
    ]:
        assert without_places(text) == without


def test_files_name_no_folder_of_the_machine(submission):
    """The run's own folders are temporary ones here, which nobody can know."""
    for path in submission.iterdir():
        if path.suffix != ".png":
            assert without_places(path.read_text()) == path.read_text(), path.name
    assert "platform" not in read_submission(submission)["environment"]


# Several


def test_submissions_that_cannot_be_compared_are_named(submission, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(submission, other)
    assert main(["verify", str(submission), str(other)]) == 0
    both = {name: read_submission(path) for name, path in (("a", submission), ("b", other))}
    assert compare_submissions(both) == []
    both["b"]["facts"]["validation"]["sha256"] = "0"
    assert compare_submissions(both) == [
        "board embedded: the validation problems are not the same in a, b"
    ]
