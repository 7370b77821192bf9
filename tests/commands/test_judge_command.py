"""`trl-r1zero judge` through its command line; at the end with a real vLLM server as the judge."""

import json
import re

import pytest
from judging import alpaca_folder, judge_server, longer, read_jsonl, safety_folder

from trl_r1zero import cli
from trl_r1zero.commands.judge import JudgeArguments, _folders_as_key, main
from trl_r1zero.recipe import parse_recipe

PAIRS = [("long answer", "short"), ("short", "long answer"), ("longest answer", "short")]


def arguments(**changes: object) -> JudgeArguments:
    return JudgeArguments(**{"results": "a", "judge_url": "http://127.0.0.1:1", **changes})


# The command


def test_the_command_line_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    folders = [alpaca_folder(tmp_path / name, PAIRS, model=name) for name in "ab"]
    with judge_server(longer) as server:
        command = ["judge", *map(str, folders), "--judge_url", server.url, "--concurrency=2"]
        assert cli.main([*command, "--request", "{seed: 3}"]) == 0
        assert len(server.requests) == 12
        assert server.requests[0].keys() == {
            *("model", "messages", "max_tokens", "temperature", "seed")
        }
        assert server.requests[0]["temperature"] == 0
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-1"}
    shown = capsys.readouterr().out
    assert f"judge/model judges 3 answers of a to alpaca_eval in {folders[0]}" in shown
    assert re.search(r"\| win rate +\| 0\.6667 ± 0\.3333 \|", shown)
    for folder in folders:
        assert f"{folder / 'judgments' / 'model'}: judge_report.md" in shown
        assert len(read_jsonl(folder / "judgments" / "model" / "judgments.jsonl")) == 6
    facts = json.loads((folders[0] / "judgments" / "model" / "judge.json").read_text())
    assert facts["judge"] == {
        "model": "judge/model",
        "max_tokens": 1024,
        "temperature": 0,
        "seed": 3,
    }
    assert facts["url"] == f"{server.url}/v1"
    assert "sk-1" not in json.dumps(facts)


def test_a_recipe(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No.", "Sure!"])
    recipe = tmp_path / "judge.yaml"
    with judge_server(lambda prompt: "unsafe", models=("a", "b")) as server:
        recipe.write_text(
            f"results: {folder}\njudge_url: {server.url}/v1\njudge_model: b\nname: mine\n"
            "max_tokens: null\ntemperature: null\nrequest: {max_completion_tokens: 9}\n"
        )
        main(["--config", str(recipe)])
        assert server.requests[0].keys() == {"model", "messages", "max_completion_tokens"}
        assert server.requests[0]["model"] == "b"
    assert (folder / "judgments" / "mine" / "judge_summary.json").is_file()


def test_a_failure_says_how_to_go_on(tmp_path, capsys):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    left = [4]

    def rule(prompt):
        left[0] -= 1
        return longer(prompt) if left[0] >= 0 else (402, {"error": {"message": "pay first"}}, {})

    with judge_server(rule) as server:
        command = [str(folder), "--judge_url", server.url, "--concurrency", "1"]
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "trl-r1zero judge: error: " in error and "(HTTP 402): pay first" in error
        assert "4 of 6 judgments are in" in error
        assert "the same command goes on from there" in error
        left[0] = 2
        main(command)
    assert "| win rate " in capsys.readouterr().out


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": []}, "results is empty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds must be above 0, got 0.0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"request": {"model": "m"}}, "request: got model, which is set by the command"),
        ({"request": {"stream": True}}, "request: got stream"),
        ({"api_key_variable": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY; set it"),
    ],
)
def test_values_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["a"], "judge_url: no value given"),
        (["--judge_url", "http://h"], "results: no value given"),
        (["a", "--judge_url", "http://h", "--modle", "m"], "unknown key 'modle'"),
        (["a", "--results", "b", "--judge_url", "http://h"], "--results is given twice"),
        (["{tmp_path}", "--judge_url", "http://h"], "{tmp_path} has no evaluation.json"),
    ],
)
def test_a_command_line_that_cannot_be_read(command, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([argument.format(tmp_path=tmp_path) for argument in command])
    assert caught.value.code == 2
    assert message.format(tmp_path=tmp_path) in capsys.readouterr().err


def test_folders_are_read_before_anything_is_asked(tmp_path, capsys):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        with pytest.raises(SystemExit):
            main([str(folder), str(tmp_path / "gone"), "--judge_url", server.url])
        assert server.requests == []
    assert "gone has no evaluation.json" in capsys.readouterr().err


def test_folders_may_come_first_or_as_a_key():
    for command in (["a", "b", "--judge_url", "u"], ["--judge_url", "u", "--results", "a", "b"]):
        parsed = parse_recipe((JudgeArguments,), _folders_as_key(command)).instances[0]
        assert parsed.results == ["a", "b"]


# A real server


@pytest.mark.parametrize(
    ("task", "choice"), [("alpaca", ["X", "Y"]), ("safety", ["safe", "unsafe"])]
)
def test_a_vllm_server_as_the_judge(vllm_server, tmp_path, task, choice):
    """An untrained model, which can only choose among the verdicts.

    Its tokenizer has no chat template, so the request brings one, which keeps the end of the
    prompt; that fits any context, and is the same for every pair.
    """
    template = "{{ messages[0]['content'][-150:] }}"
    if task == "alpaca":
        folder = alpaca_folder(tmp_path / "a", [("an answer", "a reference")] * 4)
    else:
        folder = safety_folder(tmp_path / "a", ["No.", "Sure!", "", "No."])
    request = {"chat_template": template, "structured_outputs": {"choice": choice}}
    main(
        [
            *(str(folder), "--judge_url", vllm_server.base_url, "--name", "vllm"),
            *("--request", json.dumps(request), "--max_tokens", "8"),
        ]
    )
    rows = read_jsonl(folder / "judgments" / "vllm" / "judgments.jsonl")
    assert len(rows) == (8 if task == "alpaca" else 4)
    assert {row["reply"] for row in rows} <= set(choice)
    assert {row["finish_reason"] for row in rows} == {"stop"}
    summary = json.loads((folder / "judgments" / "vllm" / "judge_summary.json").read_text())
    assert summary["unparsed"] == 0
    if task == "alpaca":
        # It cannot tell the outputs apart, so it must say the same letter in both orders.
        assert len({row["reply"] for row in rows}) == 1
        assert summary["win_rate"] == 0.5
