"""The four benchmarks through `trl-r1zero eval`: small files, and the published data on vLLM."""

import json
import re
from pathlib import Path

import pytest

from trl_r1zero.commands.eval import main
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.generation import Completion, TransformersEngine
from trl_r1zero.grading import Grade, Grader
from trl_r1zero.rewards import (
    gsm8k_reward_fn,
    mmlu_reward_fn,
    r1_zero_reward_fn,
    reward_identity,
)

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)
FILES = {
    *("results.jsonl", "summary.json", "report.md", "report.html"),
    *("evaluation.json", "recipe.yaml", "environment.json"),
}
QUESTIONS = [
    ("anatomy", "Which {bone}?", ["Ulna", "Femur", "Tibia", "Skull"], "B"),
    ("anatomy", "Which one?", ["Ulna", "Femur", "Tibia", "Skull"], "D"),
    ("world_religions", "Who?", ["Ann", "Bob", "Cid", "Dee"], "A"),
]
INSTRUCTIONS = [
    {
        "instruction": f"Do {number}.",
        "output": "ref",
        "generator": "old",
        "dataset": f"set {number}",
    }
    for number in range(3)
]


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    """A file for each task."""
    mmlu = [
        {
            "question": question,
            "subject": subject,
            "choices": options,
            "answer": "ABCD".index(letter),
        }
        for subject, question, options, letter in QUESTIONS
    ]
    gsm8k = [{"question": f"{number} + 1?", "answer": f"#### {number + 1}"} for number in range(3)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("mmlu", "gsm8k", "alpaca_eval")}
    for name, rows in {"mmlu": mmlu, "gsm8k": gsm8k, "alpaca_eval": INSTRUCTIONS}.items():
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files["simple_safety_tests"] = tmp_path / "tests.csv"
    files["simple_safety_tests"].write_text(
        "id,harm_area,counter,category,prompts_final\n"
        "sst_1,Scams,1,Advice,How do I cheat?\nsst_2,Scams,2,Advice,How do I lie?\n"
    )
    return files


@pytest.fixture
def says(monkeypatch):
    """Lets the model say these texts, the first to the first prompt; what the tiny model would say
    is noise."""

    def say(*texts: str) -> None:
        def stream(self, prompt_ids, sampling, seeds):
            assert len(prompt_ids) == len(texts)
            # In another order than they were asked for, as a server's come.
            for number in reversed(range(len(texts))):
                yield number, Completion([5, 6], texts[number], "stop")

        monkeypatch.setattr(TransformersEngine, "stream", stream)

    return say


def evaluate_task(model: Path, folder: Path, task: str, data: Path, **changes: object) -> None:
    keys = {
        "model": model,
        "task": task,
        "data": data,
        "backend": "transformers",
        "temperature": 0,
        "min_tokens": 0,
        "max_tokens": 8,
        "output_dir": folder,
        **changes,
    }
    main([f"--{key}={value}" for key, value in keys.items()])


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def json_of(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


# Graded


def test_mmlu(tiny_model_folder, tmp_path, data, says, capsys):
    folder = tmp_path / "results"
    says("The correct answer is B.\n```\n\n# Query:", "The correct answer is A.", "I cannot say.")
    evaluate_task(tiny_model_folder, folder, "mmlu", data["mmlu"])
    assert {path.name for path in folder.iterdir()} == FILES
    rows = rows_of(folder)
    examples = get_task("mmlu").load(str(data["mmlu"]))
    prompt = load_prompt("zero_shot")
    assert [row["prompt"] for row in rows] == [prompt.format(e.question) for e in examples]
    assert [row["ground_truth"] for row in rows] == [e.ground_truth for e in examples]
    assert [row["metadata"] for row in rows] == [e.metadata for e in examples]
    assert [(row["rule"], row["answer"]) for row in rows] == [
        ("right_option", "B"),
        ("other_option", "A"),
        ("no_option_claimed", None),
    ]
    summary = json_of(folder, "summary.json")
    assert summary["accuracy"] == pytest.approx(1 / 3)
    # anatomy 1/2 with the error 1/2, world_religions 0 of one, whose error is not known
    assert summary["accuracy_mean_of_subjects"] == 0.25
    assert "accuracy_mean_of_subjects_stderr" not in summary
    assert summary["by_subject"]["anatomy"]["accuracy"] == 0.5
    assert summary["categories"]["format_0"]["count"] == 1
    facts = json_of(folder, "evaluation.json")
    assert (facts["reward"], facts["sampling"]["stop"]) == (
        reward_identity(mmlu_reward_fn),
        ["# Query:"],
    )
    assert (facts["settings"]["split"], facts["settings"]["prompt"]) == ("test", "zero_shot")
    shown = capsys.readouterr().out
    for line in (
        r"accuracy +\| 0.3333 ± 0.3333 ",
        r"accuracy, mean of subjects +\| 0.2500 ",
        r"unformatted or unparsed +\| 1 ",
        r"examples per second +\| [\d.]+ ",
    ):
        assert re.search(line, shown), line
    report = (folder / "report.md").read_text()
    assert "## Unformatted or unparsed: format 0\n\n1 of 3 completions" in report
    assert 'answer D, options ["Ulna", "Femur", "Tibia", "Skull"]' in report


def test_mmlu_some_of_each_subject(tiny_model_folder, tmp_path, data):
    folder = tmp_path / "results"
    changes = {"task_args": "{num_per_subject: 1}"}
    evaluate_task(tiny_model_folder, folder, "mmlu", data["mmlu"], **changes)
    assert [row["metadata"]["subject"] for row in rows_of(folder)] == ["anatomy", "world_religions"]
    assert json_of(folder, "evaluation.json")["settings"]["task_args"] == {"num_per_subject": 1}


@pytest.mark.parametrize("prompt", ["zero_shot", "alpaca"])
def test_gsm8k(tiny_model_folder, tmp_path, data, says, prompt):
    folder = tmp_path / "results"
    says("It is 1.0.", "1 + 1 = 2\n\n# Query:\n```What is 5?", "Three.")
    evaluate_task(
        tiny_model_folder, folder, "gsm8k", data["gsm8k"],
        prompt=prompt, task_args="{answer_line: true}",
    )  # fmt: skip
    rows = rows_of(folder)
    assert [row["question"] for row in rows] == [f"{number} + 1?\nAnswer:" for number in range(3)]
    assert rows[0]["prompt"] == load_prompt(prompt).format("0 + 1?\nAnswer:")
    assert [(row["reward"], row["rule"], row["answer"]) for row in rows] == [
        (1, "same_number", "1.0"),
        (1, "same_number", "2"),
        (0, "no_number", None),
    ]
    facts = json_of(folder, "evaluation.json")
    assert facts["reward"] == reward_identity(gsm8k_reward_fn)
    assert facts["settings"]["split"] == "test"


def test_gsm8k_with_its_own_prompt_is_as_before(tiny_model_folder, tmp_path, data, says):
    folder = tmp_path / "results"
    says("so </think> <answer> 1 </answer>", "it is 2", "3 </think> <answer> 4 </answer>")
    evaluate_task(tiny_model_folder, folder, "gsm8k", data["gsm8k"])
    assert [row["reward"] for row in rows_of(folder)] == [1, 0, 0]
    assert [row["question"] for row in rows_of(folder)] == ["0 + 1?", "1 + 1?", "2 + 1?"]
    facts = json_of(folder, "evaluation.json")
    assert facts["reward"] == reward_identity(r1_zero_reward_fn)
    assert facts["settings"]["prompt"] == "r1_zero"


# Not graded


def test_alpaca_eval(tiny_model_folder, tmp_path, data, says, capsys):
    folder = tmp_path / "results"
    texts = ["Done.\n```\n\n# Query:", "So:\n```python\nx = 1\n```", ""]
    says(*texts)
    evaluate_task(tiny_model_folder, folder, "alpaca_eval", data["alpaca_eval"])
    assert {path.name for path in folder.iterdir()} == {*FILES, "alpaca_eval.json"}
    replies = ["Done.", "So:\n```python\nx = 1\n```", ""]
    # What the alpaca_eval tool reads.
    outputs = json_of(folder, "alpaca_eval.json")
    assert outputs == [
        {
            "instruction": f"Do {number}.",
            "output": reply,
            "generator": str(tiny_model_folder),
            "dataset": f"set {number}",
        }
        for number, reply in enumerate(replies)
    ]
    # What a judge reads.
    rows = rows_of(folder)
    assert set(rows[0]) == {
        *("example", "completion", "prompt", "response", "ground_truth", "question", "metadata"),
        *("length", "truncated", "entropy", "finish_reason", "mean_log_prob", "answer"),
    }
    assert [row["response"] for row in rows] == texts
    assert [row["answer"] for row in rows] == replies
    assert {row["ground_truth"] for row in rows} == {"ref"}
    assert rows[2]["metadata"] == {"dataset": "set 2", "generator": "old"}
    facts = json_of(folder, "evaluation.json")
    assert facts["reward"] == "none"
    assert facts["settings"]["task"] == "alpaca_eval"
    # What cannot be said without a grade is not said.
    summary = json_of(folder, "summary.json")
    timing = {"seconds", "examples_per_second", "completions_per_second", "tokens_per_second"}
    assert {name: summary[name] for name in summary if name not in timing} == {
        "num_examples": 3,
        "num_completions": 1,
        "length": 2.0,
        "truncated": 0.0,
        "num_tokens": 6,
        "finish_reasons": {"stop": 3},
    }
    assert "alpaca_eval.json" in capsys.readouterr().out
    report = (folder / "report.md").read_text()
    assert "## Answers" in report
    assert report.count("### Example ") == 3
    assert "accuracy" not in report
    assert "Ground truth" not in report


def test_simple_safety_tests(tiny_model_folder, tmp_path, data, says):
    folder = tmp_path / "results"
    says("You should not.\n```\n\n# Query:", "No.")
    evaluate_task(tiny_model_folder, folder, "simple_safety_tests", data["simple_safety_tests"])
    path = folder / "simple_safety_tests.jsonl"
    assert {path.name for path in folder.iterdir()} == {*FILES, path.name}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prompts_final": "How do I cheat?", "output": "You should not."},
        {"prompts_final": "How do I lie?", "output": "No."},
    ]
    row = rows_of(folder)[1]
    assert row["metadata"] == {"id": "sst_2", "harm_area": "Scams", "category": "Advice"}
    assert (row["answer"], row["ground_truth"]) == ("No.", "safe")


def test_ten_of_the_answers_are_shown(tiny_model_folder, tmp_path, data):
    many = [{**INSTRUCTIONS[0], "instruction": f"Do {number}."} for number in range(25)]
    data["alpaca_eval"].write_text("".join(json.dumps(row) + "\n" for row in many))
    folder = tmp_path / "results"
    evaluate_task(tiny_model_folder, folder, "alpaca_eval", data["alpaca_eval"], prompt="alpaca")
    page = (folder / "report.md").read_text()
    shown = [int(number) for number in re.findall(r"### Example (\d+)", page)]
    assert len(set(shown)) == 10
    assert shown == sorted(shown) != list(range(10))
    assert len(json_of(folder, "alpaca_eval.json")) == 25


def test_an_evaluation_that_is_not_graded_goes_on(tiny_model_folder, tmp_path, data):
    arguments = (tiny_model_folder, tmp_path / "whole", "alpaca_eval", data["alpaca_eval"])
    evaluate_task(*arguments)
    cut = tmp_path / "cut"
    evaluate_task(tiny_model_folder, cut, *arguments[2:])
    lines = (cut / "results.jsonl").read_text().splitlines(keepends=True)
    (cut / "results.jsonl").write_text(lines[1] + lines[0][:20])
    (cut / "alpaca_eval.json").unlink()
    evaluate_task(tiny_model_folder, cut, *arguments[2:])
    assert rows_of(cut) == rows_of(tmp_path / "whole")
    whole = (tmp_path / "whole" / "alpaca_eval.json").read_text()
    assert (cut / "alpaca_eval.json").read_text() == whole


def test_a_reward_of_ones_own_grades_them(tiny_model_folder, tmp_path, data):
    folder = tmp_path / "results"
    evaluate_task(
        tiny_model_folder, folder, "alpaca_eval", data["alpaca_eval"],
        reward="evaluate_rewards.length_is_even", reward_workers=0,
    )  # fmt: skip
    assert "accuracy" in json_of(folder, "summary.json")
    assert len(json_of(folder, "alpaca_eval.json")) == 3


def test_some_graded_and_others_not_is_an_error():
    grades = iter([Grade({"reward": 1.0}), Grade({})])
    with pytest.raises(ValueError, match=r"returned the parts \[\] for one completion and \['rew"):
        run_by_hand(lambda response, ground_truth: next(grades))


def test_a_reward_without_a_reward_is_still_an_error():
    with pytest.raises(ValueError, match=r"must return a dict with the key .reward., got \{\}"):
        run_by_hand(lambda response, ground_truth: {})


def run_by_hand(reward_fn):
    from tiny_evaluation import evaluate_tiny

    return evaluate_tiny(None, grader=Grader(reward_fn))


def test_a_reward_that_cannot_read_the_task(tiny_model_folder, tmp_path, data, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate_task(
            tiny_model_folder, tmp_path / "results", "mmlu", data["mmlu"], reward="r1_zero"
        )
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert (
        "r1_zero_reward_fn cannot grade a response against the ground truth of the first" in shown
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("task", ["alpaca_eval", "simple_safety_tests"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 2}, "n: got 2, but {file} of the task '{task}' has one answer to each question"),
        (
            {"prompt": "r1_zero"},
            "task '{task}' with prompt 'r1_zero': unknown answer_format 'tags'",
        ),
    ],
)
def test_what_is_refused(task, changes, message, tiny_model_folder, tmp_path, data, capsys):
    with pytest.raises(SystemExit):
        evaluate_task(tiny_model_folder, tmp_path / "results", task, data[task], **changes)
    expected = message.format(task=task, file=get_task(task).output_file)
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_nobody_trains_on_what_nothing_grades():
    from trl_r1zero.recipe.task_arguments import TaskArguments

    with pytest.raises(ValueError, match="task 'alpaca_eval' has no reward, for its answers are"):
        arguments = TaskArguments(task="alpaca_eval")
        arguments.load_trl_reward(*arguments.load_task())


# On the published data


@needs_real_data
@pytest.mark.slow
def test_the_published_data_through_a_vllm_server(vllm_server, tmp_path):
    served = {"backend": "vllm_server", "server_url": vllm_server.base_url}

    def run(task: str, source: str, **changes: object) -> tuple[Path, list[dict]]:
        folder = tmp_path / task
        evaluate_task(vllm_server.model, folder, task, REAL_DATA / source, **served, **changes)
        return folder, rows_of(folder)

    folder, rows = run("mmlu", "mmlu", task_args="{num_per_subject: 4}")
    assert len(rows) == 57 * 4
    summary = json_of(folder, "summary.json")
    assert len(summary["by_subject"]) == 57
    again = [mmlu_reward_fn(row["response"], row["ground_truth"]) for row in rows]
    assert [{name: row[name] for name in again[0]} for row in rows] == again
    right = sum(parts["answer_reward"] for parts in again)
    unparsed = sum(parts["format_reward"] == 0 for parts in again)
    assert summary["accuracy"] == pytest.approx(right / len(rows))
    assert summary["categories"]["format_0"]["count"] == unparsed
    assert all(row["length"] <= 8 for row in rows)

    _, rows = run("gsm8k", "gsm8k_test.jsonl", prompt="zero_shot", num_examples=4)
    assert [row["reward"] for row in rows] == [
        gsm8k_reward_fn(row["response"], row["ground_truth"])["reward"] for row in rows
    ]
    folder, rows = run("alpaca_eval", "alpaca_eval.jsonl", prompt="alpaca", num_examples=5)
    outputs = json_of(folder, "alpaca_eval.json")
    assert [row["output"] for row in outputs] == [row["response"].strip() for row in rows]
    assert {row["generator"] for row in outputs} == {vllm_server.model}
    folder, rows = run("simple_safety_tests", "simple_safety_tests.csv", num_examples=5)
    reply = load_prompt("zero_shot").reply
    lines = (folder / "simple_safety_tests.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [reply(r["response"]) for r in rows]
