"""Each rule is broken on a copy of a valid submission, and is named."""

import json
import shutil
import socket

import pytest
import yaml
from leaderboard_runs import broken_rules, change_lines, reseal

from trl_r1zero.commands.leaderboard import main
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.leaderboard import SubmissionError, verify
from trl_r1zero.leaderboard.clock import START
from trl_r1zero.leaderboard.rules import question_hash
from trl_r1zero.leaderboard.submission import without_places
from trl_r1zero.leaderboard.verify import compare_submissions, read_submission


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
        (("model", "num_parameters"), 700_000, "model"),
        (("model", "architecture"), "LlamaForCausalLM", "model"),
        (("training", "sha256"), "0" * 64, "clock"),
        (("model", "name"), "another", "model"),
        (("hardware", "num_gpus"), 1, "hardware"),
        (("hardware", "num_processes"), 8, "hardware"),
    ],
)
def test_a_fact_that_a_rule_does_not_allow_is_named(submission, keys, value, rule):
    reseal(submission, set_fact(*keys, value=value))
    assert broken_rules(submission) == [rule]


@pytest.mark.parametrize(
    ("keys", "value", "rule"),
    [
        (("model", "weights"), {}, "model"),
        (("validation", "sha256"), "0" * 64, "validation problems"),
        (("prompt", "sha256"), "0" * 64, "prompt"),
        (("reward",), "math", "reward"),
    ],
)
def test_other_inputs_than_those_of_the_starts_are_named_too(submission, keys, value, rule):
    reseal(submission, set_fact(*keys, value=value))
    assert broken_rules(submission) == [rule, "clock"]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"eval_temperature": 0.6}, "sampling"),
        ({"eval_top_p": 0.9}, "sampling"),
        ({"top_k": 20}, "sampling"),
        ({"min_p": 0.1}, "sampling"),
        ({"eval_seed": 1}, "sampling"),
        ({"eval_max_completion_length": 128}, "tokens"),
        ({"task": "countdown"}, "task"),
        ({"model_name_or_path": "another"}, "model"),
        ({"model_init_kwargs": {"subfolder": "trained"}}, "model"),
    ],
)
def test_a_setting_that_a_rule_does_not_allow_is_named(submission, settings, rule):
    path = submission / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))
    reseal(submission)
    assert broken_rules(submission) == [rule]


# Responses


def duplicate(rows):
    rows[1] = dict(rows[0])


RESPONSES = [
    (lambda rows: rows.pop(), ["validation problems"]),
    (duplicate, ["validation problems"]),
    (lambda rows: rows[3].update(ground_truth="7"), ["validation problems"]),
    (lambda rows: rows[3].update(prompt=f"Hint. {rows[3]['prompt']}"), None),
    (lambda rows: rows[3].update(length=65), ["tokens"]),
    (lambda rows: rows[3].update(truncated=True, length=20), ["tokens"]),
    (lambda rows: rows[3].update(reward=1.0, answer_reward=1.0), ["reward", "accuracy"]),
    (lambda rows: rows[3].update(format_reward=1.0), ["reward"]),
]


@pytest.mark.parametrize(("change", "rules"), RESPONSES)
def test_a_changed_response_is_named(submission, change, rules):
    change_lines(submission / "responses.jsonl", change)
    reseal(submission)
    # A changed prompt is no question of the validation set either.
    assert broken_rules(submission) == (rules or ["validation problems", "prompt"])


def test_a_better_answer_does_not_fit_the_clock(submission):
    """A response that is right is graded so; the run had measured another accuracy."""

    def answer(rows):
        row = rows[3]
        row["response"] = f" </think> <answer> {row['ground_truth']} </answer>"
        row.update(reward=1.0, format_reward=1.0, answer_reward=1.0)

    change_lines(submission / "responses.jsonl", answer)
    reseal(submission)
    assert broken_rules(submission) == ["accuracy"]


def test_an_accuracy_that_is_only_stated_is_named(submission):
    path = submission / "submission.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "accuracy": 0.9}))
    assert broken_rules(submission) == ["accuracy"]


# Training data


def test_a_validation_question_among_the_training_questions_is_named(submission):
    first = json.loads((submission / "responses.jsonl").read_text().splitlines()[0])
    before, after = load_prompt("chain_arithmetic").template.split("{question}")
    question = first["prompt"].removeprefix(before).removesuffix(after)
    with (submission / "training_hashes.txt").open("a") as file:
        file.write(question_hash(f"  {question} ") + "\n")
    reseal(submission)
    (check,) = [check for check in verify(submission) if not check.holds]
    assert check.rule == "training data"
    assert check.evidence.startswith("1 of 512")


def test_no_training_questions_at_all_are_named(submission):
    (submission / "training_hashes.txt").write_text("")
    reseal(submission)
    assert broken_rules(submission) == ["training data"]


# Time


def test_a_run_that_took_too_long_is_named(submission):
    def late(events):
        events[-1]["time"] += 3600

    change_lines(submission / "clock.jsonl", late)
    reseal(submission)
    assert broken_rules(submission) == ["time"]


def test_a_clock_that_is_started_later_is_named(submission):
    """Somebody drops the first start, and with it the minutes before the second."""

    def drop(events):
        second = [event["event"] for event in events].index(START, 1)
        del events[:second]

    change_lines(submission / "clock.jsonl", drop)
    reseal(submission)
    assert broken_rules(submission) == ["clock"]


def test_a_start_from_another_run_s_checkpoint_is_named(submission):
    def go_on(events):
        second = [event["event"] for event in events].index(START, 1)
        events[second]["from_step"] += 1000
        for event in events[second + 1 :]:
            event["grpo_step"] += 1000

    change_lines(submission / "clock.jsonl", go_on)
    reseal(submission)
    assert "clock" in broken_rules(submission)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("seconds", 1.0, "time"),
        ("grpo_steps", 5, "clock"),
        ("environment", {"commit": "f" * 40}, "files"),
    ],
)
def test_what_is_only_stated_is_named(submission, key, value, rule):
    path = submission / "submission.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert broken_rules(submission) == [rule]


# Files


@pytest.mark.parametrize("name", ["responses.jsonl", "clock.jsonl", "accuracy.png", "recipe.yaml"])
def test_a_file_that_was_changed_is_named(submission, name):
    with (submission / name).open("ab") as file:
        file.write(b"\n")
    assert broken_rules(submission)[0] == "files"


def test_a_file_that_is_missing_is_named(submission, capsys):
    (submission / "metrics.jsonl").unlink()
    assert broken_rules(submission) == ["files"]
    assert main(["verify", str(submission)]) == 1
    assert "metrics.jsonl is missing" in capsys.readouterr().out


def test_a_file_that_is_no_more_what_it_was_is_named(submission):
    (submission / "responses.jsonl").write_text('{"prompt": "half a row"}\n')
    assert broken_rules(submission) == ["files", "contents"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe.yaml", "a: [b"),
        ("recipe.yaml", "5"),
        ("clock.jsonl", ""),
        ("environment.json", "{"),
        ("responses.jsonl", '{"prompt": 5}\n'),
    ],
)
def test_files_that_cannot_be_read_are_named(submission, name, text):
    (submission / name).write_text(text)
    assert broken_rules(submission)[0] == "files"
    assert broken_rules(submission)[-1] == "contents"


def test_a_folder_without_a_submission_is_an_error(tmp_path, capsys):
    with pytest.raises(SubmissionError, match=r"submission\.json does not exist"):
        verify(tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ('{"format": 2}', "not of format 1"), ('{"format": 1}', "lacks")],
)
def test_a_submission_that_cannot_be_read_is_an_error(submission, text, message):
    (submission / "submission.json").write_text(text)
    with pytest.raises(SubmissionError, match=message):
        verify(submission)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("files", [], "files must be a mapping; got \\[\\]"),
        ("facts", {}, "facts has no mapping model"),
        ("accuracy", None, "accuracy must be a number; got null"),
        ("accuracy_stderr", True, "accuracy_stderr must be a number; got true"),
        ("board", ["embedded"], "board must be a name"),
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


def test_texts_keep_words_that_are_also_a_machine_s_name(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.node", lambda: "train")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    for text, without in [
        ("eval_split: train", "eval_split: train"),
        ("url: http://train:8000/v1", "url: http://host:8000/v1"),
        ("url: http://training:8000", "url: http://training:8000"),
        (f"output_dir: {tmp_path}/runs/a  # x", "output_dir: runs/a  # x"),
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
    assert "platform" not in json.loads((submission / "environment.json").read_text())


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
