"""Traces: read, made from worked solutions, repaired, filtered, selected."""

import json
import logging
import random
from pathlib import Path

import pytest
import trace_rewards

from trl_r1zero.data.prompts import ANSWER_FORMATS, Prompt, load_prompt
from trl_r1zero.data.rows import build_trace_dataset
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.chain_arithmetic import (
    HONEST,
    noisy_trace,
    solve_steps,
    solve_trace,
)
from trl_r1zero.data.traces import (
    RESPONSE_WRITERS,
    Trace,
    count_questions,
    fix_whitespace,
    has_wrong_whitespace,
    keep_correct,
    load_traces,
    select_examples,
)
from trl_r1zero.rewards import gsm8k_reward_fn, question_only_reward_fn, r1_zero_reward_fn

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)
TAGS = Prompt("p", "Q: {question}\nA: <think>", ("</answer>",), "tags")
BOXED = Prompt("p", "{question}", (), "boxed")
MATH = get_task("math")
GSM8K = get_task("gsm8k")


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def trace(response, prompt="q", ground_truth="4"):
    return Trace(prompt, response, ground_truth, "x.jsonl:1")


# Rows that are traces.


def test_rows_with_prompt_and_response_are_taken_as_they_are(tmp_path):
    source = written(
        tmp_path,
        {"prompt": "Q: 2+2?\nA: <think>", "response": " 4 </think>\r\n<answer> 4 </answer>"},
        {"prompt": "{question} ", "response": " 4", "ground_truth": "4", "other": 1},
        {"prompt": "∫ é 数", "response": "\n\n½\u00a0", "ground_truth": ["1/2", "0.5"]},
        {"prompt": "p", "response": "r", "ground_truth": None, "problem": "also a problem"},
    )
    assert load_traces(MATH, TAGS, source) == [
        Trace("Q: 2+2?\nA: <think>", " 4 </think>\r\n<answer> 4 </answer>", None, f"{source}:1"),
        Trace("{question} ", " 4", "4", f"{source}:2"),
        Trace("∫ é 数", "\n\n½\u00a0", ["1/2", "0.5"], f"{source}:3"),
        Trace("p", "r", None, f"{source}:4"),
    ]


def test_any_task_takes_traces_from_a_source(tmp_path):
    source = written(tmp_path, {"prompt": "p", "response": "r"})
    for name in ("math", "gsm8k", "countdown", "chain_arithmetic"):
        assert load_traces(get_task(name), TAGS, source) == [Trace("p", "r", None, f"{source}:1")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "response": "r"}, r"rows.jsonl:2: field 'prompt': got '' \(str\)"),
        ({"prompt": 3, "response": "r"}, r"rows.jsonl:2: field 'prompt': got 3 \(int\)"),
        ({"prompt": "p", "response": 4}, r"jsonl:2: field 'response': got 4 \(int\), expected a n"),
        ({"prompt": "p", "response": ""}, r"rows.jsonl:2: field 'response': got '' \(str\)"),
        (
            {"prompt": "p"},
            r"rows.jsonl:2: field 'response': got nothing, expected a string, as the row has the "
            r"field 'prompt'; add it, or remove 'prompt' if the rows are problems with solutions",
        ),
        ({"prompt": None, "response": "r"}, r"rows.jsonl:2: field 'prompt': got nothing"),
        (
            {"prompt": "p", "response": "r", "ground_truth": 4},
            r"rows.jsonl:2: field 'ground_truth': got 4 \(int\), expected a non-empty string or a "
            r"list of them; write numbers in quotes",
        ),
        ({"prompt": "p", "response": "r", "ground_truth": ""}, r"'ground_truth': got '' \(str\)"),
        ({"prompt": "p", "response": "r", "ground_truth": []}, r"'ground_truth': got \[\] \(list"),
        ({"prompt": "p", "response": "r", "ground_truth": ["4", 4]}, r"got \['4', 4\] \(list\)"),
        (
            {"problem": "p", "solution": r"\boxed{4}"},
            r"rows.jsonl:2: got a problem, without the fields prompt and response, expected a "
            r"trace, with the fields prompt and response, as in the first row; put the two kinds",
        ),
    ],
)
def test_errors_of_traces(tmp_path, row, message):
    source = written(tmp_path, {"prompt": "p", "response": "r"}, row)
    with pytest.raises(ValueError, match=message):
        load_traces(MATH, TAGS, source)


def test_a_trace_among_problems_is_an_error(tmp_path):
    source = written(
        tmp_path,
        {"problem": "p", "solution": r"\boxed{4}"},
        {"prompt": "p", "response": "r"},
    )
    with pytest.raises(ValueError, match=r"rows.jsonl:2: got a trace, .*, expected a problem"):
        load_traces(MATH, TAGS, source)


# Rows that are problems with worked solutions.


def test_there_is_a_writer_for_each_answer_format():
    assert RESPONSE_WRITERS.keys() == ANSWER_FORMATS.keys()


def test_a_solution_for_a_prompt_of_free_text(tmp_path):
    source = written(tmp_path, {"question": "q", "answer": "1+2=<<1+2=3>>3\n#### 3"})
    prompt = load_prompt("alpaca")
    (trace,) = load_traces(get_task("gsm8k"), prompt, source)
    assert (trace.prompt, trace.response) == (prompt.format("q"), "1+2=3\nThe answer is 3.")
    assert gsm8k_reward_fn(trace.response, trace.ground_truth)["reward"] == 1.0


@pytest.mark.parametrize(
    ("row", "tags", "boxed"),
    [
        (
            {"problem": "q", "solution": r"So $x=\boxed{4}$."},
            r" So $x=\boxed{4}$. </think> <answer> 4 </answer>",
            "\nSo $x=\\boxed{4}$.",
        ),
        (
            {"problem": "q", "solution": "\n Two and two. \n", "answer": "4"},
            " Two and two. </think> <answer> 4 </answer>",
            "\nTwo and two.\n\\boxed{4}",
        ),
        (
            {"problem": "q", "solution": r"Cut off: \boxed{\frac{1}", "answer": r"\frac{1}{2}"},
            r" Cut off: \boxed{\frac{1} </think> <answer> \frac{1}{2} </answer>",
            "\nCut off: \\boxed{\\frac{1}\n\\boxed{\\frac{1}{2}}",
        ),
    ],
)
def test_math_solutions(tmp_path, row, tags, boxed):
    source = written(tmp_path, row)
    answer = row.get("answer", "4")
    assert load_traces(MATH, TAGS, source) == [
        Trace("Q: q\nA: <think>", tags, answer, f"{source}:1")
    ]
    assert load_traces(MATH, BOXED, source) == [Trace("q", boxed, answer, f"{source}:1")]
    assert r1_zero_reward_fn(tags, answer)["reward"] == 1.0
    assert question_only_reward_fn(boxed, answer)["reward"] == 1.0


def test_gsm8k_solutions(tmp_path):
    answer = "Sold 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*50=1200>>1200.\n#### 1,200"
    source = written(tmp_path, {"question": "q", "answer": answer})
    assert load_traces(GSM8K, TAGS, source) == [
        Trace(
            "Q: q\nA: <think>",
            " Sold 48/2 = 24 clips.\nThat is $1200. </think> <answer> 1200 </answer>",
            "1200",
            f"{source}:1",
        )
    ]
    assert load_traces(GSM8K, BOXED, source)[0].response == (
        "\nSold 48/2 = 24 clips.\nThat is $1200.\n\\boxed{1200}"
    )


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (MATH, {"problem": "p", "answer": "4"}, r"rows.jsonl:1: field 'solution': got nothing"),
        (MATH, {"problem": "p", "solution": "none"}, r"jsonl:1: field 'solution': .*'?boxed"),
        (GSM8K, {"question": "q", "answer": "it is 3"}, r"jsonl:1: field 'answer': got 'it is 3"),
        (
            GSM8K,
            {"question": "q", "answer": "\n#### 3"},
            r"jsonl:1: field 'answer': got no working before '####', expected a worked solution",
        ),
        (
            get_task("countdown"),
            {"question": "q"},
            r"task 'countdown': got problems, expected traces, for this task has no worked "
            r"solutions; give a source whose rows have the fields prompt and response",
        ),
        (
            get_task("chain_arithmetic"),
            {"question": "1 + 1"},
            r"task 'chain_arithmetic': got problems, expected traces or no source, .* remove the",
        ),
    ],
)
def test_errors_of_solutions(tmp_path, task, row, message):
    with pytest.raises(ValueError, match=message):
        load_traces(task, TAGS, written(tmp_path, row))


def test_no_source():
    with pytest.raises(ValueError, match=r"task 'math': got no source, expected a JSON-lines file"):
        load_traces(MATH, TAGS, None)
    with pytest.raises(ValueError, match=r"task 'countdown': got no source, expected traces, for"):
        load_traces(get_task("countdown"), TAGS, None)


def test_chain_arithmetic_makes_its_own_traces():
    task = get_task("chain_arithmetic", num_train=20, num_validation=5)
    prompt = load_prompt("chain_arithmetic")
    traces = load_traces(task, prompt, None)
    examples = task.load()
    assert traces[0] == Trace(
        "Q: 26 - 8 + 4 + 7 + 6\nA: <think>",
        " 26 - 8 = 18 ; 18 + 4 = 22 ; 22 + 7 = 29 ; 29 + 6 = 35 </think> <answer> 35 </answer>",
        "35",
        "chain_arithmetic train row 0",
    )
    assert [t.response for t in traces] == [solve_trace(e.question) for e in examples]
    assert [t.ground_truth for t in traces] == [e.ground_truth for e in examples]
    assert len(load_traces(task, prompt, None, split="validation")) == 5
    boxed = load_traces(task, BOXED, None)[0]
    assert boxed.response.endswith("; 29 + 6 = 35\n\\boxed{35}")


def test_solve_steps_and_the_honest_noisy_trace_agree():
    assert solve_steps("14 + 5 - 8") == ("14 + 5 = 19 ; 19 - 8 = 11", "11")
    for example in get_task("chain_arithmetic", num_train=50).load():
        honest = noisy_trace(example.question, random.Random(1), HONEST)
        assert solve_trace(example.question) == honest


@needs_real_data
def test_published_gsm8k_solutions():
    traces = load_traces(GSM8K, load_prompt("r1_zero"), str(REAL_DATA / "gsm8k_train.jsonl"))
    assert len(traces) == count_questions(traces) == 7473
    assert not any(mark in t.response for t in traces for mark in ("<<", ">>", "####"))
    assert traces[0].response == (
        " Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April "
        "and May. </think> <answer> 72 </answer>"
    )
    sample = traces[::100]
    assert keep_correct(sample, r1_zero_reward_fn) == sample


@needs_real_data
@pytest.mark.parametrize(
    ("prompt", "reward_fn"), [(TAGS, r1_zero_reward_fn), (BOXED, question_only_reward_fn)]
)
def test_published_math_solutions(prompt, reward_fn):
    sample = load_traces(MATH, prompt, str(REAL_DATA / "math500_test.jsonl"))[::10]
    assert len(sample) == 50
    assert keep_correct(sample, reward_fn) == sample


# fix_whitespace


@pytest.mark.parametrize(
    ("response", "fixed"),
    [
        ("a </think>\n<answer> 4 </answer>", "a </think> <answer> 4 </answer>"),
        ("a </think>\r\n\r\n<answer> 4 </answer>", "a </think> <answer> 4 </answer>"),
        ("a </think><answer> 4 </answer>", "a </think> <answer> 4 </answer>"),
        ("a </think>  <answer>4</answer>", "a </think> <answer>4</answer>"),
        ("a </think>\t\u00a0\u3000<answer>4</answer>", "a </think> <answer>4</answer>"),
        ("</think>\n<answer> </think>\n<answer>", "</think> <answer> </think> <answer>"),
    ],
)
def test_fix_whitespace(response, fixed):
    assert has_wrong_whitespace(response)
    assert fix_whitespace([trace(response)]) == ([trace(fixed)], 1)
    assert not has_wrong_whitespace(fixed)


@pytest.mark.parametrize(
    "response",
    [
        "a </think> <answer> 4 </answer>",
        "a </think> so <answer> 4 </answer>",
        "a\n<answer> 4 </answer>\n</think>",
        "a </think>\n",
        "< /think>\n<answer> 4",
        "",
    ],
)
def test_fix_whitespace_leaves_all_else_alone(response):
    assert not has_wrong_whitespace(response)
    assert fix_whitespace([trace(response)]) == ([trace(response)], 0)


def test_fix_whitespace_counts_rows():
    bad = trace("</think>\n<answer>", prompt="p", ground_truth=["4"])
    fixed, changed = fix_whitespace([bad, trace("</think> <answer>"), bad])
    assert changed == 2
    assert fixed[0] == Trace("p", "</think> <answer>", ["4"], "x.jsonl:1")


# keep_correct

RIGHT = trace(" 2+2 </think> <answer> 4 </answer>")
WRONG = trace(" 2+2 </think> <answer> 5 </answer>")
NEWLINE = trace(" 2+2 </think>\n<answer> 4 </answer>")
EITHER = trace(" 2+2 </think> <answer> 1/2 </answer>", ground_truth=["7", r"\frac{1}{2}"])


def test_keep_correct():
    assert keep_correct([WRONG, RIGHT, EITHER, WRONG], r1_zero_reward_fn) == [RIGHT, EITHER]


def test_keep_correct_takes_the_answer_reward_where_there_is_one():
    traces = [trace("4"), trace("5")]
    assert keep_correct(traces, trace_rewards.format_counts) == [traces[0]]
    assert keep_correct(traces, trace_rewards.only_reward) == [traces[0]]


def test_keep_correct_tells_of_rows_that_only_white_space_fails(caplog):
    assert keep_correct([RIGHT, NEWLINE, WRONG], r1_zero_reward_fn) == [RIGHT]
    assert caplog.messages == [
        "filter_correct leaves out 2 responses; 1 of them have wrong white space between "
        "</think> and <answer>; --fix_whitespace repairs it before grading"
    ]
    fixed, _ = fix_whitespace([NEWLINE])
    assert keep_correct(fixed, r1_zero_reward_fn) == fixed


def test_keep_correct_errors():
    with pytest.raises(
        ValueError, match=r"^x.jsonl:1: field 'ground_truth': got nothing, .* leave filter_correct"
    ):
        keep_correct([RIGHT, trace("r", ground_truth=None)], r1_zero_reward_fn)
    with pytest.raises(
        ValueError, match=r"r1_zero_reward_fn accepts none of 1 responses, .* answer format of the"
    ) as error:
        keep_correct([WRONG], r1_zero_reward_fn)
    assert "fix_whitespace" not in str(error.value)
    with pytest.raises(ValueError, match=r"accepts none of 2 .* 1 of them .* --fix_whitespace rep"):
        keep_correct([WRONG, NEWLINE], r1_zero_reward_fn)
    with pytest.raises(
        ValueError, match=r"no_reward must return a dict with the key 'reward', got"
    ):
        keep_correct([RIGHT], trace_rewards.no_reward)


def test_keep_correct_with_workers(caplog):
    caplog.set_level(logging.WARNING, logger="trl_r1zero.data.traces")
    traces = [trace("4 a"), trace("4 hang"), trace("5"), trace("4 die"), trace("4 b")]
    kept = keep_correct(traces, trace_rewards.hangs_or_dies, workers=2, deadline_seconds=0.5)
    assert kept == [traces[0], traces[4]]
    mine = [r.getMessage() for r in caplog.records if r.name == "trl_r1zero.data.traces"]
    assert mine == [
        "2 responses could not be graded and are left out, the first: x.jsonl:1 (timeout: no "
        "result after 0.5 s)"
    ]


# select_examples


def many(questions=20, each=3):
    return [
        Trace(f"q{number % questions}", f"r{number}", None, f"x:{number}")
        for number in range(questions * each)
    ]


def test_subsets_are_nested_and_keep_all_traces_of_a_question():
    traces = many()
    smaller: set[str] = set()
    for num_examples in (1, 4, 8, 16, 20):
        chosen = select_examples(traces, num_examples, seed=3)
        questions = {t.prompt for t in chosen}
        assert len(questions) == num_examples
        assert smaller <= questions
        assert chosen == [t for t in traces if t.prompt in questions]
        smaller = questions
    assert select_examples(traces, None, seed=3) == traces


def test_the_seed_decides_the_subset():
    traces = many()
    assert select_examples(traces, 8, seed=3) == select_examples(traces, 8, seed=3)
    assert select_examples(traces, 8, seed=3) != select_examples(traces, 8, seed=4)


def test_the_subset_is_the_same_on_every_machine():
    # Pinned: a change here changes the data of every recorded run.
    chosen = select_examples(many(each=1), 5, seed=0)
    assert [t.prompt for t in chosen] == ["q0", "q10", "q14", "q16", "q18"]


def test_select_examples_errors():
    with pytest.raises(
        ValueError, match=r"got 21, expected .* at most 20, as the 60 traces have so many"
    ):
        select_examples(many(), 21, seed=0)
    with pytest.raises(ValueError, match=r"num_examples: got 0, expected at least 1 and at"):
        select_examples(many(), 0, seed=0)


# build_trace_dataset


def test_build_trace_dataset():
    dataset = build_trace_dataset([trace("r", "p", "4"), trace("", "q", ["1", "2"])])
    assert list(dataset) == [
        {"prompt": "p", "response": "r", "ground_truth": ["4"]},
        {"prompt": "q", "response": "", "ground_truth": ["1", "2"]},
    ]
    assert build_trace_dataset([trace("r")])["ground_truth"][:] == ["4"]


def test_build_trace_dataset_has_ground_truths_only_where_all_rows_do():
    dataset = build_trace_dataset([trace("r"), trace("s", ground_truth=None)])
    assert dataset.column_names == ["prompt", "response"]
    with pytest.raises(ValueError, match=r"got no traces"):
        build_trace_dataset([])
