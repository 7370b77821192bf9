"""Prompts that differ from the run's own in white space alone."""

import pytest

from trl_r1zero.data.prompts import Prompt, load_prompt
from trl_r1zero.data.trace_doctor import examine_traces
from trl_r1zero.data.traces import Trace
from trl_r1zero.data.white_space import other_white_space

R1_ZERO = load_prompt("r1_zero")
TEXT = R1_ZERO.format("What is\n\n1 +  1?")


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("\nUser: ", "\n\nUser: ", r"'nswer>.\n\nUser: ', not 'nswer>.\nUser: '"),
        ("\nUser: ", "\r\nUser: ", r"'answer>.\r\nUser:"),
        ("\nUser: ", " User: ", "'answer>. User: ', not "),
        ("\nUser: ", "\nUser:", r"'>.\nUser:'"),
        ("\nUser: ", "\nUser:\t", r"User:\t"),
        ("\nAssistant: <think>", "\nAssistant: <think>\n", r"<think>\n', not "),
        ("\nAssistant: <think>", "\nAssistant: <think> ", "<think> ', not "),
        ("\nAssistant: <think>", "\nAssistant:\u00a0<think>", r"tant:\xa0<think>"),
        ("\nAssistant: <think>", "\n\tAssistant: <think>", r"\n\tAssist"),
        ("\nAssistant: <think>", "\r\nAssistant: <think>", r"\r\nAssist"),
        ("The User asks", "The  User asks", "The  User"),
        ("A conversation", " A conversation", "' A conve', not 'A conver'"),
    ],
)
def test_all_kinds_of_white_space(old, new, shown):
    text = TEXT.replace(old, new)
    assert text != TEXT
    found = other_white_space([TEXT, text, TEXT], R1_ZERO)
    assert list(found) == [1]
    assert shown in found[1]


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace("User: ", "User:  "), TEXT.replace("\nAss", " \nAss"), "", "other"]
)
def test_what_is_no_difference_in_white_space_alone(text):
    """White space at the ends of a few questions is the questions' own."""
    assert other_white_space([text, TEXT, TEXT], R1_ZERO) == {}


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("User: ", "User:  ", "User:  ', not "),
        ("\nAssistant", "\n\nAssistant", r"'\n\nAssist"),
    ],
)
def test_white_space_at_the_ends_of_all_questions_is_the_prompts(old, new, shown):
    found = other_white_space([TEXT.replace(old, new)] * 3, R1_ZERO)
    assert list(found) == [0, 1, 2]
    assert shown in found[0]


def test_questions_of_the_validation_that_have_it_too():
    text = TEXT.replace("\nAssistant", "\n\nAssistant")
    assert other_white_space([text] * 3, R1_ZERO, [text, text, TEXT]) == {}
    assert len(other_white_space([text] * 3, R1_ZERO, [TEXT, text, TEXT])) == 3


def test_a_prompt_that_is_the_question_alone():
    prompt = Prompt("p", "{question}", (), "boxed")
    assert other_white_space(["a", "b\n"], prompt) == {1: r"'\n', not ''"}
    assert other_white_space(["a", "b", "c\n"], prompt) == {}


def test_the_report_of_traces_says_it():
    traces = [
        Trace(R1_ZERO.format(f"{n}?").replace("\nUser", "\n\nUser"), " 1", None, f"f:{n}")
        for n in range(5)
    ]
    given = {"answer_format": "boxed", "max_length": None}
    report = examine_traces(traces, [(1, 1)] * 5, prompt=R1_ZERO, **given)
    finding = report.findings["prompt_white_space"]
    assert finding.rows == 5
    assert finding.places[0].where == "f:0"
    text = report.to_text()
    assert "WARNING: 5 rows (100.0 %) with a prompt that differs from the run's own" in text
    assert r"f:0: 'nswer>.\n\nUser: ', not 'nswer>.\nUser: '" in text
    assert "prompt_white_space" not in examine_traces(traces, [(1, 1)] * 5, **given).findings
