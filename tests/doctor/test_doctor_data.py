"""Rows that cannot be used, that are there twice, and that do not fit."""

import json

import pytest
from doctor_runs import make_run, math_rows, write_rows

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.doctor.data import (
    check_context,
    check_duplicates,
    check_overlap,
    check_rows,
    check_white_space,
    load_data,
    longest_row,
    read_split,
    with_lengths,
)


@pytest.fixture
def paths(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", math_rows(20))
    validation = write_rows(tmp_path / "validation.jsonl", math_rows(5, start=100))
    return train, validation


def run_of(paths, *settings, assume="80GB", method="grpo"):
    train, validation = paths
    data = (f"--train_data={train}", f"--eval_data={validation}")
    return make_run(assume, *data, *settings, method=method)


def splits_of(run):
    """Its data with lengths."""
    return [with_lengths(split, build_embedded_tokenizer()) for split in load_data(run)]


def test_good_rows(paths):
    train, validation = load_data(run_of(paths))
    findings = [*check_rows(train), *check_rows(validation), *check_overlap(train, validation)]
    assert [finding.level for finding in findings] == ["ok", "ok", "ok"]
    assert findings[0].found == f"train_data: 20 rows from {paths[0]}"


def test_bad_rows_are_listed_by_their_line_and_the_rest_is_read(tmp_path, paths):
    rows = math_rows(20)
    rows[6]["answer"] = ""
    rows[11] = {"problem": "no answer"}
    train = write_rows(tmp_path / "bad.jsonl", rows)
    split, _ = load_data(run_of((train, paths[1])))
    assert list(split.bad) == [7, 12]
    assert len(split.prompts) == 18
    good, bad = check_rows(split)
    assert (good.level, bad.level) == ("ok", "problem")
    assert "row 7: field 'answer': got '' (str)" in bad.found
    assert f"sed -i '7d;12d' {train}" in bad.do
    assert "does not start with them" in bad.found
    assert "on_bad_row: skip" in bad.do
    _, bad = check_rows(split, "skip")
    assert bad.level == "warning"
    assert "a run leaves them out" in bad.found


def test_a_file_that_is_wrong_as_a_whole_is_one_problem(tmp_path, paths):
    path = write_rows(tmp_path / "other.jsonl", math_rows(3))
    with path.open("a") as file:
        file.write("{not JSON\n")
    train, _ = load_data(run_of((path, paths[1])))
    (finding,) = check_rows(train)
    assert f"{path}:4: got text that is not JSON" in finding.found


def test_a_file_of_which_no_row_can_be_used_is_a_problem(tmp_path, paths):
    rows = [{"question": "a", "answer": "1"}] * 3
    train, _ = load_data(run_of((write_rows(tmp_path / "other.jsonl", rows), paths[1])))
    assert list(train.bad) == [1, 2, 3]
    assert [finding.level for finding in check_rows(train)] == ["problem", "problem"]
    assert "none of the rows can be used" in train.error


def test_rows_after_a_bad_one_keep_their_line(tmp_path, paths):
    rows = [*math_rows(3), *math_rows(2), *math_rows(1, start=100)]
    rows[0] = {"problem": "no answer"}
    path = write_rows(tmp_path / "bad.jsonl", rows)
    train, validation = load_data(run_of((path, path)))
    assert train.lines == [2, 3, 4, 5, 6]
    (duplicates,) = check_duplicates(train)
    assert "the first that is there twice is row 2" in duplicates.found
    (overlap,) = check_overlap(load_data(run_of(paths))[1], validation)
    assert "rows 6 of eval_data" in overlap.found
    run = run_of((path, path), "--max_completion_length=4000")
    lengths = check_context(run, [with_lengths(train, build_embedded_tokenizer())], context=4096)
    assert "5 rows (2, 3, 4, 5, 6)" in next(lengths).found


def test_a_file_that_is_missing_is_a_problem(tmp_path, paths):
    train, _ = load_data(run_of((tmp_path / "none.jsonl", paths[1])))
    (finding,) = check_rows(train)
    assert finding.level == "problem"
    assert "does not exist" in finding.found


def test_the_file_itself_is_not_touched(tmp_path):
    path = write_rows(tmp_path / "bad.jsonl", [*math_rows(2), {"problem": "x", "answer": ""}])
    before = path.read_bytes()
    read_split("train_data", str(path), get_task("math").load, {})
    assert path.read_bytes() == before


def test_rows_that_repeat(tmp_path, paths):
    train = write_rows(tmp_path / "twice.jsonl", [*math_rows(3), *math_rows(2)])
    (finding,) = check_duplicates(load_data(run_of((train, paths[1])))[0])
    assert (finding.level, finding.check) == ("warning", "train_data_duplicates")
    assert "2 rows repeat an earlier one" in finding.found


def test_validation_problems_that_are_trained_on(tmp_path, paths):
    validation = write_rows(tmp_path / "seen.jsonl", [*math_rows(1, 100), *math_rows(2, 5)])
    (finding,) = check_overlap(*load_data(run_of((paths[0], validation))))
    assert finding.level == "warning"
    assert "2 of 3 validation problems" in finding.found
    assert "rows 2, 3 of eval_data" in finding.found


def test_several_validation_sets(tmp_path, paths):
    """Each is read by its own task, and looked at like a single one."""
    (tmp_path / "seen").mkdir()
    seen = [{"question": row["problem"], "answer": [2, "2.0"]} for row in math_rows(3, 19)]
    write_rows(tmp_path / "seen" / "aime.jsonl", seen)
    sets = [{"data": str(paths[1])}, {"name": "AIME24", "task": "aime"}]
    sets[1] |= {"data": str(tmp_path / "seen"), "num_examples": 2}
    run = run_of((paths[0], json.dumps(sets)))
    train, *validation = splits_of(run)
    assert [split.name for split in validation] == ["eval_data.math", "eval_data.AIME24"]
    assert [len(split.prompts) for split in validation] == [5, 2]
    (clear,), (overlap,) = (check_overlap(train, split) for split in validation)
    assert (clear.level, overlap.level) == ("ok", "warning")
    assert "no validation problem of math" in clear.found
    assert "1 of 2 validation problems" in overlap.found
    assert "rows 1 of eval_data.AIME24" in overlap.found
    findings = check_context(run, [train, *validation], context=4096)
    assert {finding.check for finding in findings} == {
        *("train_data_lengths", "eval_data.math_lengths", "eval_data.AIME24_lengths"),
    }


@pytest.mark.parametrize(
    ("server", "new_tokens", "level"),
    [
        ("{max_model_len: 300}", 200, "problem"),
        ("{max_model_len: 4096}", 200, "ok"),
        ("{}", 4000, "problem"),
        (None, 4000, "problem"),
    ],
)
def test_prompts_with_their_completions_fit_the_context(paths, server, new_tokens, level):
    settings = [f"--max_completion_length={new_tokens}"]
    if server is not None:
        settings += ["--use_vllm=true", f"--vllm_server={server}"]
    run = run_of(paths, *settings)
    findings = check_context(run, splits_of(run), context=4096)
    assert {finding.check: finding.level for finding in findings} == {
        "train_data_lengths": level,
        "eval_data_lengths": level,
    }


def test_prompts_that_a_run_leaves_out_are_a_warning(tmp_path, paths):
    train = write_rows(
        tmp_path / "long.jsonl", [*math_rows(3), {"problem": "1 " * 400, "answer": "1"}]
    )
    settings = ["--max_completion_length=200", "--on_bad_row=skip", "--num_eval_examples=1"]
    settings += ["--use_vllm=true", "--vllm_server={max_model_len: 600}"]
    run = run_of((train, paths[1]), *settings)
    findings = {one.check: one for one in check_context(run, splits_of(run), context=4096)}
    assert findings["train_data_lengths"].level == "warning"
    assert "for 1 rows (4); a run leaves them out" in findings["train_data_lengths"].found
    assert findings["eval_data_lengths"].level == "ok"


def test_white_space_of_prompts_that_are_given(tmp_path):
    rows = [{"prompt": f"{n}\n", "response": "r"} for n in range(4)]
    traces = write_rows(tmp_path / "traces.jsonl", rows)
    run = make_run(
        "80GB",
        f"--train_data={traces}",
        "--prompt=question_only",
        "--eval_every=null",
        method="sft",
    )
    (finding,) = check_white_space(run, load_data(run), load_prompt("question_only"))
    assert "4 of 4 rows" in finding.found
    assert "row 1: '\\n', not ''" in finding.found


def test_more_than_the_models_context_for_the_server(paths):
    run = run_of(paths, "--use_vllm=true", "--vllm_server={max_model_len: 8192}")
    findings = check_context(run, load_data(run), context=4096)
    assert [(one.check, one.level) for one in findings] == [("max_model_len", "problem")]


def test_the_longest_row_of_a_method(tmp_path, paths):
    run = run_of(paths, "--max_completion_length=200")
    train = splits_of(run)[0]
    assert longest_row(run, train) == max(train.prompt_tokens) + 200

    traces = write_rows(
        tmp_path / "traces.jsonl", [{"prompt": "a", "response": "b " * n} for n in (1, 50)]
    )
    for most, expected in ((1000, 101), (60, 60)):
        run = make_run(
            "80GB",
            f"--train_data={traces}",
            f"--max_length={most}",
            "--eval_every=null",
            method="sft",
        )
        assert longest_row(run, splits_of(run)[0]) == pytest.approx(expected, abs=1)


def test_pairs_and_instructions_are_read(tmp_path):
    pair = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello, good morning",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    }
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair])
    (train,) = load_data(make_run("80GB", f"--train_data={pairs}", method="dpo"))
    assert (train.prompts, train.responses) == (["Hi"], ["Hello, good morning"])

    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}])
    run = make_run(
        "80GB", f"--train_data={rows}", f"--eval_data={rows}", method="instruction_tuning"
    )
    assert load_data(run)[1].responses == ["r"]
