"""The doctor: each fault found, none where there is none, and lengths worked by hand."""

import json

import pytest

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.trace_doctor import LengthSummary, Place, examine_traces
from trl_r1zero.data.traces import Trace, fix_whitespace, load_traces

GOOD = " 2+2 </think> <answer> 4 </answer>"
TAG_FINDINGS = {
    "no_think_end",
    "no_answer",
    "no_answer_end",
    "wrong_whitespace",
    "tags_apart",
    "repeated_tag",
    "text_after_answer",
}


def rows(*responses, prompt="Q: {}\nA: <think>"):
    """Traces of different questions."""
    return [
        Trace(prompt.format(number), response, "4", f"x.jsonl:{number}")
        for number, response in enumerate(responses, start=1)
    ]


def examined(traces, answer_format="tags", max_length=None, eval_prompts=(), lengths=None):
    return examine_traces(
        traces,
        lengths or [(2, 3)] * len(traces),
        answer_format=answer_format,
        max_length=max_length,
        eval_prompts=eval_prompts,
    )


def found(report):
    return {name: finding.rows for name, finding in report.findings.items() if finding.rows}


@pytest.mark.parametrize(
    ("response", "faults"),
    [
        # Nothing wrong.
        (GOOD, set()),
        (" 2+2 = ½·8, naïve 数 </think> <answer> 4 </answer>\r\n", set()),
        (" if a<b and c>d: <b>4</b> </think> <answer> $4$ </answer>", set()),
        # White space.
        (" 2+2 </think>\n<answer> 4 </answer>", {"wrong_whitespace"}),
        (" 2+2 </think>\r\n<answer> 4 </answer>", {"wrong_whitespace"}),
        (" 2+2 </think>\n\n<answer> 4 </answer>", {"wrong_whitespace"}),
        (" 2+2 </think><answer> 4 </answer>", {"wrong_whitespace"}),
        (" 2+2 </think>  <answer> 4 </answer>", {"wrong_whitespace"}),
        (" 2+2 </think>\u00a0<answer> 4 </answer>", {"wrong_whitespace"}),
        # Something else in between.
        (" 2+2 </think> So: <answer> 4 </answer>", {"tags_apart"}),
        (" 2+2 </think>\u200b<answer> 4 </answer>", {"tags_apart"}),
        ("<answer> 4 </answer> 2+2 </think>", {"tags_apart", "text_after_answer"}),
        # Missing tags.
        (" 2+2 <answer> 4 </answer>", {"no_think_end"}),
        (" 2+2 </THINK> <answer> 4 </answer>", {"no_think_end"}),
        (" 2+2 </think> 4", {"no_answer", "no_answer_end"}),
        (" 2+2 </think> <answer> 4", {"no_answer_end"}),
        (" 2+2 </think> 4 </answer>", {"no_answer"}),
        (" 2+2 = 4", {"no_think_end", "no_answer", "no_answer_end"}),
        ("", {"empty_response", "no_think_end", "no_answer", "no_answer_end"}),
        (" \n", {"empty_response", "no_think_end", "no_answer", "no_answer_end"}),
        # Tags more than once.
        ("<think> 2+2 </think> <answer> 4 </answer>", {"repeated_tag"}),
        (" 2 </think> 2 </think> <answer> 4 </answer>", {"repeated_tag"}),
        (" 2+2 </think> <answer> <answer> 4 </answer> </answer>", {"repeated_tag"}),
        (" 2+2 </think> <answer> 4 </answer> </answer>", {"repeated_tag"}),
        # Text behind.
        (GOOD + "\nQ: 3+3", {"text_after_answer"}),
        (GOOD + "<|endoftext|>", {"text_after_answer"}),
        (GOOD + GOOD, {"repeated_tag"}),
    ],
)
def test_tags(response, faults):
    report = examined(rows(response))
    assert found(report) == dict.fromkeys(faults, 1)
    assert report.healthy == (not faults)
    others = examined(rows(response), answer_format="boxed")
    assert set(found(others)) == faults - TAG_FINDINGS
    assert not set(others.findings) & TAG_FINDINGS


def test_a_think_tag_is_the_first_one_where_the_prompt_has_none():
    response = "<think> 2+2 </think> <answer> 4 </answer>"
    assert found(examined(rows(response, prompt="Q: {}\nA:"))) == {}
    assert found(examined(rows(response, prompt="Q: {}\nA: <think>\n"))) == {"repeated_tag": 1}


def test_places_are_the_first_few_with_the_text_around_the_fault():
    long = "x" * 40
    bad = f"{long} </think>\n<answer> {long}"
    report = examined(rows(GOOD, bad, *["</think><answer>"] * 4))
    finding = report.findings["wrong_whitespace"]
    assert finding.rows == 5
    assert finding.places == (
        Place("x.jsonl:2", f"'...{'x' * 24} </think>\\n<answer> {'x' * 24}...'"),
        Place("x.jsonl:3", "'</think><answer>'"),
        Place("x.jsonl:4", "'</think><answer>'"),
    )
    assert finding.advice.endswith("--fix_whitespace repairs them.")


def test_an_excerpt_is_short_whatever_the_fault():
    report = examined(rows("</think>" + " " * 5000 + "<answer> 4 </answer>"))
    assert len(report.findings["wrong_whitespace"].places[0].excerpt) == 105


def test_fix_whitespace_leaves_nothing_to_find():
    traces = rows(GOOD, "</think>\n<answer> 4 </answer>")
    assert found(examined(traces)) == {"wrong_whitespace": 1}
    assert examined(fix_whitespace(traces)[0]).healthy


def test_duplicates_are_counted_beyond_the_first():
    traces = [
        Trace("p", "r", None, "x:1"),
        Trace("p", "s", None, "x:2"),
        Trace("p", "r", "4", "x:3"),
        Trace("q", "r", None, "x:4"),
        Trace("p", "r", None, "x:5"),
    ]
    report = examined(traces, answer_format="boxed")
    assert (report.rows, report.questions) == (5, 2)
    assert found(report) == {"duplicates": 2}
    assert report.findings["duplicates"].places == (Place("x:3", "as x:1"), Place("x:5", "as x:1"))


def test_validation_overlap_does_not_depend_on_white_space():
    traces = rows(GOOD, GOOD, GOOD) + rows(GOOD + " ")
    report = examined(traces, eval_prompts=["Q:  1\r\nA: <think> ", "Q: 3\nA: <think>", "Q: 9"])
    finding = report.findings["in_validation"]
    assert finding.rows == 3
    assert finding.problem == "a question of the validation set (different ones: 2)"
    assert [place.where for place in finding.places] == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:1"]
    assert examined(traces, eval_prompts=["Q: 4"]).findings["in_validation"].rows == 0
    assert "in_validation" not in examined(traces).findings


def test_too_long():
    report = examined(rows(GOOD, GOOD), max_length=10, lengths=[(4, 6), (5, 6)])
    assert report.findings["too_long"].rows == 1
    assert report.findings["too_long"].places == (Place("x.jsonl:2", "11 tokens"),)
    assert "too_long" not in examined(rows(GOOD)).findings


def test_lengths():
    # Totals 11, 12, ..., 30: the 95th percentile is the 19th of 20, 29.
    lengths = [(10, number) for number in range(1, 21)]
    report = examined(rows(*[GOOD] * 20), lengths=lengths)
    assert report.lengths == {
        "prompt": LengthSummary(10, 10, 10, 10),
        "response": LengthSummary(1, 10.5, 19, 20),
        "total": LengthSummary(11, 20.5, 29, 30),
    }
    # (29 - 11 + 1) / 10 bins = 1.9, so bins of 2 from 10 on.
    middle = tuple((low, low + 1, 2) for low in range(12, 30, 2))
    assert report.histogram == ((10, 11, 1), *middle, (30, 31, 1))


def test_one_very_long_row_does_not_hide_the_others():
    totals = [100, 149, 150, 180, 199] * 8 + [9000]
    report = examined(rows(*[GOOD] * 41), lengths=[(0, total) for total in totals])
    # The 95th percentile is the 39th of 41, 199: 100 / 10 bins, so bins of 10.
    assert report.histogram == (
        (100, 109, 8),
        (110, 119, 0),
        (120, 129, 0),
        (130, 139, 0),
        (140, 149, 8),
        (150, 159, 8),
        (160, 169, 0),
        (170, 179, 0),
        (180, 189, 8),
        (190, 199, 8),
        (200, 9000, 1),
    )


def test_lengths_all_equal():
    report = examined(rows(GOOD, GOOD), lengths=[(7, 7), (7, 7)])
    assert report.histogram == ((14, 14, 2),)
    assert report.lengths["total"] == LengthSummary(14, 14, 14, 14)


def test_text():
    traces = [
        Trace("Q: 1\nA: <think>", " a </think>\n<answer> 4 </answer>", "4", "x.jsonl:1"),
        Trace("Q: 2\nA: <think>", GOOD, "4", "x.jsonl:2"),
    ]
    report = examined(traces, max_length=1024, lengths=[(10, 1190), (10, 90)])
    assert report.to_text() == TEXT


TEXT = r"""
Traces: 2 rows, different questions: 2
WARNING: 1 row (50.0 %) with something other than one space between </think> and <answer>
    x.jsonl:1: ' a </think>\n<answer> 4 </answer>'
  The reward is 0 for such a response. --fix_whitespace repairs them.
WARNING: 1 row (50.0 %) with more tokens than max_length, 1,024
    x.jsonl:1: 1,200 tokens
  Raise max_length if memory admits it, or remove the rows.
  Not found: an empty response; a missing </think>; a missing <answer>; a missing </answer>; text
  between </think> and <answer>, or the two in the wrong order; a tag more than once; text after
  </answer>; the prompt and response of an earlier row again.
Tokens          min    median  95th perc.       max
  prompt         10        10          10        10
  response       90       640       1,190     1,190
  total         100       650       1,200     1,200
Rows by total tokens
        0 - 199          1  ########################################
      200 - 399          0
      400 - 599          0
      600 - 799          0
      800 - 999          0
  1,000 - 1,199          0
  1,200 - 1,399          1  ########################################
""".strip()


def test_text_is_narrow_and_cannot_steer_a_terminal():
    where = "/data/" + "deep/" * 30 + "train.jsonl:12345"
    response = "\x1b[2J\u202e" * 20 + "</think>\n<answer>" + "\u4e00\x07" * 50
    report = examined([Trace("p", response, "4", where)] * 3, max_length=1, eval_prompts=["p"])
    assert set(found(report)) == {
        "no_answer_end",
        "wrong_whitespace",
        "duplicates",
        "in_validation",
        "too_long",
    }
    lines = report.to_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert any("train.jsonl:12345: " in line for line in lines)


def test_dict_is_json():
    report = examined(rows(GOOD, "</think>\n<answer>"), max_length=4, eval_prompts=["Q: 1"])
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["rows"] == 2
    assert data["findings"]["wrong_whitespace"]["rows"] == 1
    assert data["findings"]["wrong_whitespace"]["places"] == [
        {"where": "x.jsonl:2", "excerpt": r"'</think>\n<answer>'"}
    ]
    assert data["findings"]["no_answer"]["rows"] == 0
    assert data["lengths"]["total"] == {"min": 5, "median": 5, "percentile_95": 5, "max": 5}
    assert data["histogram"] == [[5, 5, 2]]


def test_the_embedded_task_is_healthy():
    task = get_task("chain_arithmetic", num_train=30, num_validation=10)
    prompt = load_prompt("chain_arithmetic")
    traces = load_traces(task, prompt, None)
    eval_prompts = [prompt.format(e.question) for e in task.load(split="validation")]
    report = examined(traces, max_length=5, eval_prompts=eval_prompts)
    assert report.healthy
    assert len(report.findings) == 11
    assert (report.rows, report.questions) == (30, 30)


def test_errors():
    with pytest.raises(ValueError, match=r"got no traces, expected at least one"):
        examined([])
    with pytest.raises(ValueError, match=r"got 1 lengths for 2 traces, expected as many"):
        examined(rows(GOOD, GOOD), lengths=[(1, 1)])


def test_responses_that_their_tokens_change():
    traces = [Trace("p", " a", None, "x:1"), Trace("p", "b", None, "x:2")]
    lengths = [(1, 1), (1, 1)]
    settings = {"answer_format": "text", "max_length": None}
    same = examine_traces(traces, lengths, read_back=[" a", "b"], **settings)
    assert "read_otherwise" not in same.findings
    changed = examine_traces(traces, lengths, read_back=[" a", " b"], **settings)
    finding = changed.findings["read_otherwise"]
    assert (finding.rows, finding.places[0].excerpt) == (1, "' b'")
    assert "1 row (50.0 %) with a response whose tokens read otherwise" in changed.to_text()
