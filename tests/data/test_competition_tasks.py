"""MATH-500, AIME, AMC, Minerva and OlympiadBench: columns of the published copies, several right
answers, and the graders on the published answers."""

import json
from pathlib import Path

import pytest

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.base import Example
from trl_r1zero.data.traces import load_traces
from trl_r1zero.rewards import math_reward_fn, question_only_reward_fn, r1_zero_reward_fn

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)
# Task -> its published file, problems, and those with several right answers.
FILES = {
    "math500": ("math500_test.jsonl", 500, 0),
    "aime": ("evaluation_suite", 30, 0),
    "amc": ("evaluation_suite", 83, 0),
    "minerva": ("evaluation_suite", 272, 40),
    "olympiad_bench": ("evaluation_suite", 675, 0),
}
# Hub id -> the task that reads it, a row with its columns, and what that is.
COPIES = {
    "HuggingFaceH4/aime_2024": (
        "aime",
        {"id": 60, "problem": "p", "solution": r"\boxed{1}", "answer": "204", "year": "2024"},
        Example("p", "204", {"id": 60, "year": "2024"}),
    ),
    "Maxwell-Jia/AIME_2024": (
        "aime",
        {"ID": "2024-II-4", "Problem": "p", "Solution": "s", "Answer": 33},
        Example("p", "33", {"id": "2024-II-4"}),
    ),
    "math-ai/aime24": (
        "aime",
        {"id": 1, "problem": "p", "solution": r"\boxed{204}", "url": "u"},
        Example("p", "204", {"id": 1, "url": "u"}),
    ),
    "AI-MO/aimo-validation-amc": (
        "amc",
        {"id": 0, "problem": "p", "answer": 142.0, "url": "u"},
        Example("p", "142", {"id": 0, "url": "u"}),
    ),
    "math-ai/amc23": (
        "amc",
        {"id": 0, "question": "q", "answer": "27.0", "url": "u"},
        Example("q", "27.0", {"id": 0, "url": "u"}),
    ),
    "math-ai/minervamath": (
        "minerva",
        {"question": "q", "answer": "1.6\n"},
        Example("q", "1.6", {}),
    ),
    "Hothan/OlympiadBench": (
        "olympiad_bench",
        {
            "id": 1606,
            "question": "q",
            "solution": ["s"],
            "final_answer": ["$2^{1009}$"],
            "context": None,
            "is_multiple_answer": False,
            "unit": None,
            "answer_type": "Numerical",
            "subject": "Math",
            "subfield": "Algebra",
        },
        Example("q", "$2^{1009}$", {"id": 1606, "answer_type": "Numerical", "subject": "Algebra"}),
    ),
}


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("copy", COPIES)
def test_columns_of_the_copies_on_the_hub(tmp_path, copy):
    task, row, example = COPIES[copy]
    loaded = get_task(task).load(written(tmp_path, row), "test")
    assert loaded == [example]


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (["9.6\n"], "9.6"),
        (["2\n", "2"], "2"),
        (["0.01\n", "0.02\n"], ["0.01", "0.02"]),
        ([1, 2.5], ["1", "2.5"]),
        (0, "0"),
        (-4.0, "-4"),
        ("025", "025"),
    ],
)
def test_one_or_several_right_answers(tmp_path, answer, truth):
    source = written(tmp_path, {"problem": "p", "answer": answer})
    assert get_task("minerva").load(source)[0].ground_truth == truth


@pytest.mark.parametrize(("given", "truth"), [("25", "025"), ("27", "27.0"), ("2", ["0.5", "2"])])
def test_how_an_answer_is_written_does_not_matter(given, truth):
    for reward_fn in (r1_zero_reward_fn, math_reward_fn):
        assert reward_fn(f"</think> <answer>{given}</answer>", truth)["reward"] == 1


def test_of_several_answers_that_are_all_asked_for_none_is_enough(tmp_path):
    row = {"question": "q", "final_answer": ["1", "3"], "is_multiple_answer": True}
    (example,) = get_task("olympiad_bench").load(written(tmp_path, row))
    assert example.ground_truth == "1, 3"
    assert r1_zero_reward_fn("</think> <answer>1</answer>", example.ground_truth)["reward"] == 0
    assert r1_zero_reward_fn("</think> <answer>1, 3</answer>", example.ground_truth)["reward"] == 1


def test_what_a_problem_is_about_stands_before_it(tmp_path):
    row = {"question": "Find x.", "context": "Let x = 1.", "final_answer": ["1"]}
    assert get_task("olympiad_bench").load(written(tmp_path, row))[0].question == (
        "Let x = 1.\nFind x."
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "3"}, r"rows.jsonl:1: field 'problem': got nothing"),
        ({"question": " ", "answer": "3"}, r"rows.jsonl:1: field 'problem': got ' '"),
        ({"problem": "p"}, r"rows.jsonl:1: field 'answer': got neither answer nor solution"),
        ({"problem": "p", "answer": ""}, r"rows.jsonl:1: field 'answer': got '' \(str\), expected"),
        ({"problem": "p", "answer": True}, r"field 'answer': got True \(bool\), expected a text, "),
        ({"problem": "p", "answer": []}, r"rows.jsonl:1: field 'answer': got \[\] \(list\), exp"),
        ({"problem": "p", "final_answer": ["1", None]}, r"field 'final_answer': got None"),
    ],
)
def test_rows_that_are_not_right(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        get_task("amc").load(written(tmp_path, row))


def test_math_takes_a_list_of_texts(tmp_path):
    row = {"problem": "p", "answer": ["1", "1.0 "], "solution": "so it is 1"}
    source = written(tmp_path, row)
    task = get_task("math")
    assert task.load(source)[0].ground_truth == ["1", "1.0"]
    # As a trace the first is written, and any is right.
    (trace,) = load_traces(task, load_prompt("r1_zero"), source)
    assert trace.response == " so it is 1 </think> <answer> 1 </answer>"
    assert trace.ground_truth == ["1", "1.0"]
    for answer in ([], ["1", " "], ["1", 1]):
        source = written(tmp_path, {"problem": "p", "answer": answer})
        with pytest.raises(ValueError, match=r"field 'answer': got .* a list of non-empty strings"):
            get_task("math").load(source)


def test_a_folder_has_a_file_for_each_task(tmp_path):
    written(tmp_path, {"problem": "p", "answer": "1"}, name="aime.jsonl")
    assert get_task("aime").load(str(tmp_path), "test") == [Example("p", "1", {})]
    with pytest.raises(FileNotFoundError, match=r"has no test.jsonl .*it has: aime.jsonl"):
        get_task("amc").load(str(tmp_path), "test")


@needs_real_data
@pytest.mark.parametrize("name", FILES)
def test_published_answers_are_right(name):
    """Each published answer is right as a response, in the formats and by the rewards of both."""
    file, num_problems, num_several = FILES[name]
    examples = get_task(name).load(str(REAL_DATA / file), "test")
    assert len(examples) == num_problems
    truths = [e.ground_truth for e in examples]
    assert sum(isinstance(truth, list) for truth in truths) == num_several
    golds = [(gold, t) for t in truths for gold in (t if isinstance(t, list) else [t])]
    rewards = {
        "</think> <answer> {} </answer>": (r1_zero_reward_fn, math_reward_fn),
        "\\boxed{{{}}}": (question_only_reward_fn, math_reward_fn),
    }
    for form, functions in rewards.items():
        for reward_fn in functions:
            right = [reward_fn(form.format(gold), truth)["reward"] for gold, truth in golds]
            assert sum(right) == len(golds)
            one = r1_zero_reward_fn("</think> <answer> no such answer </answer>", truths[0])
            assert one["reward"] == 0
    dataset = build_dataset(examples, load_prompt("r1_zero"))
    assert len(dataset) == num_problems
