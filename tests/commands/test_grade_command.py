"""Responses of a file, graded by a command."""

import json

import pytest

from trl_r1zero.commands.grade import main

ROWS = [
    {"response": r"</think> <answer>\frac{2}{4}</answer>", "ground_truth": "1/2", "answer": "kept"},
    {"response": r"it is \boxed{\textcolor{red}{3}}", "ground_truth": 3},
    {"response": "", "ground_truth": ["3", "4"]},
    {"response": "</think> <answer>4</answer>", "ground_truth": "4"},
]


def graded(tmp_path, *arguments, rows=ROWS):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([str(file), "--output_dir", str(tmp_path / "out"), *arguments])
    return [json.loads(line) for line in (tmp_path / "out" / "grades.jsonl").open()]


def test_rows_are_kept_and_graded_leniently(tmp_path, capsys):
    rows = graded(tmp_path)
    assert [row["grade"]["reward"] for row in rows] == [1, 1, 0, 1]
    assert [row["grade"]["rule"] for row in rows] == [
        "same_value", "same_text", "no_mathematics", "same_text",
    ]  # fmt: skip
    assert [{k: v for k, v in row.items() if k != "grade"} for row in rows] == ROWS
    out = capsys.readouterr().out
    assert "0.7500" in out
    assert "grades.jsonl, report.md, report.html" in out


def test_a_strict_reward_says_what_the_lenient_one_would(tmp_path):
    rows = graded(tmp_path, "--reward", "r1_zero")
    assert [row["grade"]["reward"] for row in rows] == [0, 0, 0, 1]
    assert [row["grade"].get("lenient") for row in rows] == [
        "right (same_value)", "right (same_text)", "wrong (no_mathematics)", None,
    ]  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Of 3 wrong answers, the lenient grader (reward \\`math\\`) calls 2 right." in report
    assert "lenient grader: right (same\\_value)" in report or "right (same_value)" in report
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_a_function_of_ones_own_grades_in_workers(tmp_path):
    rows = graded(tmp_path, "--reward", "evaluate_rewards.length_is_even", "--reward_workers", "1")
    assert rows[2]["grade"]["reward"] == 1


def test_folder_beside_the_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n")
    main([str(file), "--reward", "question_only"])
    assert (tmp_path / "rows-question_only" / "report.html").is_file()


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"ground_truth": "1"}, [], "rows.jsonl:2: field 'response': got nothing"),
        ({"response": 3, "ground_truth": "1"}, [], "rows.jsonl:2: field 'response': got 3 (int)"),
        ({"response": "3"}, [], "rows.jsonl:2: field 'ground_truth': got nothing"),
        ({"response": "3", "ground_truth": {}}, [], "rows.jsonl:2: ground_truth has type dict"),
        (ROWS[0], ["--reward", "maths"], "did you mean 'math'"),
    ],
)
def test_what_cannot_be_graded_is_an_error_that_names_the_row(
    tmp_path, capsys, row, arguments, message
):
    with pytest.raises(SystemExit) as stop:
        graded(tmp_path, *arguments, rows=[ROWS[0], row])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_rows_can_be_left_out(tmp_path):
    rows = graded(tmp_path, "--on_bad_row", "skip", rows=[ROWS[0], {"ground_truth": "1"}])
    assert len(rows) == 1
    assert "1 of 2" in (tmp_path / "out" / "report.md").read_text()
