"""`TraceArguments`: the order of its steps, their sizes, and what comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_tokenizers import byte_level_tokenizer, sentencepiece_like_tokenizer

from trl_r1zero.recipe import RecipeError, parse_recipe
from trl_r1zero.recipe.trace_arguments import TraceArguments

TESTS = Path(__file__).parents[1]
CHAIN_ARGS = {"num_train": 40, "num_validation": 8}


def row(question, response, answer="4"):
    return {
        "prompt": f"Q: {question}\nA: <think>",
        "response": response,
        "ground_truth": answer,
    }


RIGHT = " 2 + 2 = 4 </think> <answer> 4 </answer>"
NEWLINE = " 2 + 2 = 4 </think>\n<answer> 4 </answer>"
WRONG = " 2 + 2 = 5 </think> <answer> 5 </answer>"
# Questions a to e; b has two rows that grade as right once their white space is repaired.
ROWS = [
    row("a", RIGHT),
    row("b", NEWLINE),
    row("c", WRONG),
    row("d", RIGHT),
    row("b", RIGHT.replace("2 + 2", "3 + 1")),
    row("e", NEWLINE),
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(fields) + "\n" for fields in ROWS))
    return str(path)


def arguments(source=None, **settings):
    return TraceArguments(
        task="chain_arithmetic", task_args=CHAIN_ARGS, train_data=source, **settings
    )


def test_all_steps_in_their_order(source, tokenizer):
    loaded = arguments(
        source, fix_whitespace=True, filter_correct=True, num_examples=3, subset_seed=1
    ).load_traces(tokenizer, max_length=20)
    assert list(loaded.sizes) == ["read", "fix_whitespace", "filter_correct", "num_examples"]
    assert loaded.sizes["read"] == {"rows": 6, "questions": 5}
    assert loaded.sizes["fix_whitespace"] == {"rows": 6, "questions": 5, "changed": 2}
    assert loaded.sizes["filter_correct"] == {"rows": 5, "questions": 4}
    assert loaded.sizes["num_examples"]["questions"] == 3
    assert loaded.sizes["num_examples"]["rows"] == len(loaded.train_dataset) == loaded.report.rows
    assert all("</think> <answer> 4 </answer>" in text for text in loaded.train_dataset["response"])
    # What the doctor sees is what is trained on.
    assert loaded.report.findings["wrong_whitespace"].rows == 0
    lines = loaded.to_text().splitlines()
    assert lines[:4] == [
        "Selection             rows  questions",
        "  read                   6          5",
        "  fix_whitespace         6          5  (2 rows changed)",
        "  filter_correct         5          4",
    ]
    assert lines[5].startswith("Traces: ")


def test_nothing_is_changed_unasked(source, tokenizer):
    loaded = arguments(source).load_traces(tokenizer, max_length=None)
    assert loaded.sizes == {"read": {"rows": 6, "questions": 5}}
    assert list(loaded.train_dataset) == ROWS
    assert loaded.report.findings["wrong_whitespace"].rows == 2
    assert "too_long" not in loaded.report.findings


def test_rows_that_cannot_be_used_are_counted_in_the_report(tmp_path, tokenizer):
    path = tmp_path / "traces.jsonl"
    rows = [{"prompt": "p", "response": text, "ground_truth": "1"} for text in ("r", "", "s")]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p"}]))
    loaded = arguments(str(path), on_bad_row="skip").load_traces(tokenizer, max_length=None)
    assert loaded.sizes == {"read": {"rows": 2, "questions": 1, "skipped": 2}}
    assert "read                   2          1  (2 rows skipped)" in loaded.to_text()


def test_filter_correct_without_fix_whitespace_leaves_these_rows_out(source, tokenizer, caplog):
    loaded = arguments(source, filter_correct=True).load_traces(tokenizer, max_length=None)
    assert loaded.sizes == {
        "read": {"rows": 6, "questions": 5},
        "filter_correct": {"rows": 3, "questions": 3},
    }
    assert "2 of them have wrong white space" in caplog.text


def test_lengths_are_those_of_the_trainer(source, tokenizer):
    report = arguments(source).load_traces(tokenizer, max_length=3).report
    prompts = [len(tokenizer(fields["prompt"])["input_ids"]) for fields in ROWS]
    responses = [len(tokenizer(fields["response"])["input_ids"]) for fields in ROWS]
    assert report.lengths["prompt"].max == max(prompts)
    assert report.lengths["response"].min == min(responses)
    totals = [p + r for p, r in zip(prompts, responses, strict=True)]
    assert report.lengths["total"].max == max(totals)
    assert report.findings["too_long"].rows == 6


def test_the_embedded_task_needs_no_data(tokenizer):
    loaded = arguments(num_examples=16, filter_correct=True).load_traces(tokenizer, max_length=99)
    assert loaded.train_dataset.column_names == ["prompt", "response", "ground_truth"]
    assert len(loaded.train_dataset) == 16
    assert len(loaded.eval_dataset) == 8
    assert loaded.eval_dataset.column_names == ["prompt", "question", "ground_truth"]
    assert loaded.prompt.name == "chain_arithmetic"
    assert loaded.report.healthy
    assert loaded.report.findings["in_validation"].rows == 0  # it was looked for
    first = loaded.train_dataset[0]
    rewards = loaded.reward(
        prompts=[first["prompt"]],
        completions=[first["response"]],
        ground_truth=[first["ground_truth"]],
    )
    assert rewards == [1.0]


def test_validation_is_optional_where_the_task_reads_it(tmp_path, tokenizer):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        json.dumps({"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"}) + "\n"
    )
    for name in ("gsm8k", "math"):
        train = tmp_path / "train.jsonl"
        train.write_text(json.dumps(ROWS[0]) + "\n")
        loaded = TraceArguments(task=name, train_data=str(train)).load_traces(tokenizer, None)
        assert loaded.eval_dataset is None
        assert "in_validation" not in loaded.report.findings
    loaded = TraceArguments(
        task="gsm8k", train_data=str(problems), eval_data=str(problems)
    ).load_traces(tokenizer, None)
    assert loaded.train_dataset[0]["response"] == " It is 4. </think> <answer> 4 </answer>"
    assert loaded.train_dataset[0]["prompt"] == loaded.eval_dataset[0]["prompt"]
    assert loaded.report.findings["in_validation"].rows == 1


def test_filter_correct_grades_a_dotted_path_in_workers(source, tokenizer):
    loaded = arguments(
        source, filter_correct=True, reward="trace_rewards.hangs_or_dies", reward_workers=1
    ).load_traces(tokenizer, max_length=None)
    loaded.reward.grader.close()
    # "4" occurs in all but the wrong response.
    assert loaded.sizes["filter_correct"] == {"rows": 5, "questions": 4}


def test_errors(source, tokenizer):
    with pytest.raises(ValueError, match=r"num_examples: got 6, .* at most 5, as the 6 traces"):
        arguments(source, num_examples=6).load_traces(tokenizer, None)
    with pytest.raises(ValueError, match=r"filter_correct: rejects accepts none of 6 responses"):
        arguments(
            source, filter_correct=True, reward="trace_rewards.rejects", reward_workers=0
        ).load_traces(tokenizer, None)
    with pytest.raises(ValueError, match=r"task 'math': got no source"):
        TraceArguments(task="math").load_traces(tokenizer, None)


def test_recipe_keys(capsys):
    argv = ["--num_examples", "128", "--filter_correct", "--train_data", "x.jsonl"]
    (parsed,) = parse_recipe((TraceArguments,), argv).instances
    assert parsed == TraceArguments(num_examples=128, filter_correct=True, train_data="x.jsonl")
    with pytest.raises(RecipeError, match=r"num_examples: got all, expected int or null"):
        parse_recipe((TraceArguments,), ["--num_examples", "all"])
    with pytest.raises(SystemExit):
        parse_recipe((TraceArguments,), ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--num_examples: int or null, default null" in text
    assert "of the traces: rows of prompt (already formatted)" in text


PROCESS = """
import os, sys
import torch.distributed as dist
from trl_r1zero.recipe.trace_arguments import TraceArguments

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
arguments = TraceArguments(
    task="chain_arithmetic", train_data=sys.argv[1], filter_correct=True,
    reward="trace_rewards.of_first_process", reward_workers=0,
)
traces, sizes = arguments._select(*arguments.load_task())
print(sizes["filter_correct"]["rows"], len(traces))
dist.barrier()
dist.destroy_process_group()
"""


def test_all_processes_train_on_what_the_first_one_kept(source, tmp_path):
    """Alone, the second process would keep 5 rows, and the trainer would hang."""
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, source, str(tmp_path / "rendezvous")],
            env={**os.environ, "RANK": str(rank), "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [stdout for stdout, _ in outputs] == ["6 6\n", "6 6\n"], outputs


def test_chat_traces_leave_room_for_the_end_of_the_turn():
    chat = TraceArguments(task="chain_arithmetic", task_args={"num_train": 8}, prompt="chat")
    longest = chat.load_traces(byte_level_tokenizer(), None).report.lengths["total"].max
    for max_length, too_long in ((longest + 1, False), (longest, True)):
        report = chat.load_traces(byte_level_tokenizer(), max_length).report
        assert bool(report.findings["too_long"].rows) == too_long


def test_a_tokenizer_that_puts_a_space_before_a_response_is_noticed(tmp_path):
    source = tmp_path / "traces.jsonl"
    rows = [{"prompt": "Q: <think>", "response": response} for response in ("a b", " a b")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    traces = TraceArguments(task="gsm8k", train_data=str(source))
    report = traces.load_traces(sentencepiece_like_tokenizer(), None).report
    assert report.findings["read_otherwise"].places[0].excerpt == "' a b'"
    assert report.findings["read_otherwise"].rows == 1
    assert "read_otherwise" not in traces.load_traces(byte_level_tokenizer(), None).report.findings
