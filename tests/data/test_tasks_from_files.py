"""The registry, and the tasks that read rows: math and gsm8k."""

import json
from pathlib import Path

import pytest

from trl_r1zero.data.prompts import PROMPTS, load_prompt
from trl_r1zero.data.tasks import TASKS, get_task
from trl_r1zero.data.tasks.base import Example
from trl_r1zero.rewards import question_only_reward_fn, r1_zero_reward_fn

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_get_task_knows_each_task_by_its_own_name_and_prompt():
    assert list(TASKS) == [
        *("math", "gsm8k", "countdown", "chain_arithmetic"),
        *("mmlu", "alpaca_eval", "simple_safety_tests"),
        *("math500", "aime", "amc", "minerva", "olympiad_bench"),
    ]
    for name in TASKS:
        task = get_task(name)
        assert task.name == name
        assert task.default_prompt in PROMPTS
        task.reward_fn(load_prompt(task.default_prompt))


def test_get_task_errors():
    with pytest.raises(ValueError) as error:
        get_task("maths")
    assert str(error.value) == (
        "unknown task 'maths'; did you mean 'math'? "
        "Allowed: aime, alpaca_eval, amc, chain_arithmetic, countdown, gsm8k, math, math500, "
        "minerva, mmlu, olympiad_bench, simple_safety_tests. "
        "Or give a dotted path, package.module.name."
    )
    with pytest.raises(
        ValueError, match=r"task 'countdown': unknown task_arg 'max_numer'; did you"
    ):
        get_task("countdown", max_numer=5)
    with pytest.raises(
        ValueError, match=r"task 'math': unknown task_arg 'seed'; Allowed: \(none\)"
    ):
        get_task("math", seed=5)
    with pytest.raises(ValueError, match=r"task 'countdown': seed: got '5' \(str\), expected int"):
        get_task("countdown", seed="5")
    with pytest.raises(ValueError, match=r"seed: got True \(bool\), expected int"):
        get_task("countdown", seed=True)


def test_reward_fn_follows_the_answer_format_of_the_prompt():
    math = get_task("math")
    assert math.reward_fn(load_prompt("r1_zero")) is r1_zero_reward_fn
    assert math.reward_fn(load_prompt("question_only")) is question_only_reward_fn
    response = r"so it is \boxed{4} </think> <answer> 5 </answer>"
    right = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
    assert math.reward_fn(load_prompt("r1_zero"))(response, "5") == right
    assert math.reward_fn(load_prompt("question_only"))(response, "4") == right


def test_math_takes_the_answer_or_else_the_box_of_the_solution(tmp_path):
    source = written(
        tmp_path,
        {"problem": "p", "answer": "7", "solution": r"\boxed{8}", "level": 2, "other": 1},
        {"problem": "q", "solution": r"first \boxed{1}, so \boxed{\frac{1}{2}}", "subject": "A"},
        {"problem": "r", "answer": None, "solution": r"\boxed{9}", "unique_id": "u"},
        {"problem": "s", "answer": "3"},
    )
    assert get_task("math").load(source) == [
        Example("p", "7", {"level": 2}),
        Example("q", r"\frac{1}{2}", {"subject": "A"}),
        Example("r", "9", {"unique_id": "u"}),
        Example("s", "3", {}),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "3"}, r"rows.jsonl:2: field 'problem': got nothing"),
        ({"problem": "", "answer": "3"}, r"rows.jsonl:2: field 'problem': got '' \(str\)"),
        ({"problem": "p", "answer": True}, r"rows.jsonl:2: field 'answer': got True \(bool\)"),
        ({"problem": "p", "answer": ""}, r"rows.jsonl:2: field 'answer': got '' \(str\)"),
        ({"problem": "p"}, r"rows.jsonl:2: field 'answer': got neither answer nor solution"),
        ({"problem": "p", "solution": 3}, r"rows.jsonl:2: field 'solution': got 3 \(int\)"),
        (
            {"problem": "p", "solution": r"\boxed{3"},
            r"rows.jsonl:2: field 'solution': got a text w",
        ),
        (
            {"problem": "p", "solution": r"\boxed{}"},
            r"rows.jsonl:2: field 'solution': got a text w",
        ),
    ],
)
def test_math_errors(tmp_path, row, message):
    source = written(tmp_path, {"problem": "p", "answer": "3"}, row)
    with pytest.raises(ValueError, match=message):
        get_task("math").load(source)


def test_math_needs_a_source():
    with pytest.raises(ValueError, match=r"task 'math': got no source, expected a JSON-lines file"):
        get_task("math").load()


@pytest.mark.parametrize(
    ("answer", "ground_truth"),
    [
        ("a <<1+2=3>>3\n#### 3", "3"),
        ("#### 1,234,567", "1234567"),
        ("#### -7 \n", "-7"),
        ("####2.50", "2.50"),
        ("#### 1\n#### 2", "2"),
    ],
)
def test_gsm8k_ground_truth(tmp_path, answer, ground_truth):
    source = written(tmp_path, {"question": "q", "answer": answer})
    assert get_task("gsm8k").load(source) == [Example("q", ground_truth, {})]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "q", "answer": "it is 3"},
            r"rows.jsonl:2: field 'answer': got 'it is 3' at ",
        ),
        (
            {"question": "q", "answer": "#### three"},
            r"rows.jsonl:2: field 'answer': got '#### three",
        ),
        (
            {"question": "q", "answer": "#### 3 or 4"},
            r"rows.jsonl:2: field 'answer': .*#### ' and a",
        ),
        ({"question": "q"}, r"rows.jsonl:2: field 'answer': got nothing"),
        ({"answer": "#### 3"}, r"rows.jsonl:2: field 'question': got nothing"),
    ],
)
def test_gsm8k_errors(tmp_path, row, message):
    source = written(tmp_path, {"question": "q", "answer": "#### 3"}, row)
    with pytest.raises(ValueError, match=message):
        get_task("gsm8k").load(source)


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path):
    source = written(tmp_path, {"problem": "p", "answer": "3"}, {"problem": "broken"})
    assert get_task("math").load(source, limit=1) == [Example("p", "3", {})]
    with pytest.raises(ValueError, match=r"rows.jsonl:2"):
        get_task("math").load(source, limit=2)
    with pytest.raises(ValueError, match=r"limit: got 0, expected at least 1, or None"):
        get_task("math").load(source, limit=0)


@needs_real_data
def test_math_on_the_published_math500():
    path = REAL_DATA / "math500_test.jsonl"
    examples = get_task("math").load(str(path))
    assert len(examples) == 500
    assert examples[0].ground_truth == r"\left( 3, \frac{\pi}{2} \right)"
    assert examples[0].metadata == {
        "level": 2,
        "subject": "Precalculus",
        "unique_id": "test/precalculus/807.json",
    }


@needs_real_data
def test_math500_boxes_hold_the_published_answers(tmp_path):
    lines = (REAL_DATA / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    without_answer = [{"problem": row["problem"], "solution": row["solution"]} for row in rows]
    examples = get_task("math").load(written(tmp_path, *without_answer))
    assert [example.ground_truth for example in examples] == [row["answer"] for row in rows]


@needs_real_data
@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_gsm8k_on_the_published_files(split, rows):
    examples = get_task("gsm8k").load(str(REAL_DATA / f"gsm8k_{split}.jsonl"))
    assert len(examples) == rows
    assert all(float(example.ground_truth) == int(example.ground_truth) for example in examples)
