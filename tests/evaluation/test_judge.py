"""Judging whole folders: verdicts of rules whose outcome is known, and that none is lost."""

import json
import math
import threading
import time

import pytest
from folders import holds
from judging import (
    alpaca_folder,
    blocks,
    judge_server,
    longer,
    read_jsonl,
    reply,
    safety_folder,
    write_folder,
)

from trl_r1zero.evaluation.judge import judge_answers
from trl_r1zero.evaluation.judged_tasks import judged_task
from trl_r1zero.evaluation.win_rate import length_controlled_win_rate
from trl_r1zero.generation.chat_client import ChatClient, ChatServerError

FILES = {"judge.json", "judge_report.md", "judge_summary.json", "judgments.jsonl"}
# The model's output and the reference's; question n.
PAIRS = [("long answer", "short"), ("short", "long answer"), ("longest answer", "short"), ("", "a")]


def client(server, **settings) -> ChatClient:
    fast = {"first_wait_seconds": 0.01, "retries": 1, "concurrency": 4}
    return ChatClient(server.url, **{**fast, "body": {"max_tokens": 64}, **settings})


def judge(server, folder, reference=None, name=None, **settings):
    task = judged_task(folder, reference)
    return judge_answers(task, client(server, **settings), name=name)


# Comparisons


def test_a_judge_that_prefers_the_longer(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        judged = judge(server, folder)
    assert judged.folder == folder / "judgments" / "model"
    assert {path.name for path in judged.folder.iterdir()} == FILES
    rows = read_jsonl(judged.folder / "judgments.jsonl")
    assert [(row["example"], row["completion"], row["first"]) for row in rows] == [
        (example, 0, first) for example in range(4) for first in ("model", "reference")
    ]
    assert [row["verdict"] for row in rows] == [
        *["model"] * 2,
        *["reference"] * 2,
        *["model"] * 2,
        *["reference"] * 2,
    ]
    # The same verdict is another letter in the other order.
    assert [row["reply"] for row in rows[:2]] == ["Verdict: X", "Verdict: Y"]
    summary = judged.summary
    assert summary == json.loads((judged.folder / "judge_summary.json").read_text())
    assert summary["win_rate"] == 0.5
    assert summary["win_rate_stderr"] == pytest.approx(math.sqrt(4 * 0.25 / 12))
    assert (summary["wins"], summary["losses"], summary["ties"]) == (2, 2, 0)
    assert (summary["num_examples"], summary["num_verdicts"]) == (4, 8)
    assert (summary["identical"], summary["unparsed"]) == (0, 0)
    assert summary["order_consistent"] == 1.0
    assert summary["first_preferred"] == 0.5
    assert summary["length"] == (11 + 5 + 14 + 0) / 4
    assert summary["reference_length"] == (5 + 11 + 5 + 1) / 4
    controlled = length_controlled_win_rate([1, 0, 1, 0], [6, -6, 9, -1])
    assert summary["length_controlled_win_rate"] == pytest.approx(controlled.value)
    assert summary["length_controlled_win_rate_stderr"] == pytest.approx(controlled.stderr)
    assert summary["by_dataset"]["even"]["win_rate"] == 1.0
    assert summary["by_dataset"]["odd"] == {
        "num_examples": 2,
        "win_rate": 0.0,
        "win_rate_stderr": 0.0,
        "unparsed": 0,
    }


def test_a_judge_that_always_prefers_the_first(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(lambda prompt: "X") as server:
        summary = judge(server, folder).summary
    assert summary["win_rate"] == 0.5
    assert summary["win_rate_stderr"] == 0.0
    assert summary["first_preferred"] == 1.0
    assert summary["order_consistent"] == 0.0
    assert (summary["wins"], summary["losses"], summary["ties"]) == (0, 0, 4)


def test_what_the_judge_sees(tmp_path):
    folder = alpaca_folder(tmp_path / "a", [("mine", "theirs")])
    with judge_server(lambda prompt: "X") as server:
        judge(server, folder)
        assert sorted(map(blocks, server.prompts)) == [
            ["question 0", "mine", "theirs"],
            ["question 0", "theirs", "mine"],
        ]
        # Nothing says whose output is whose.
        assert not any("davinci" in p or "model" in p.lower() for p in server.prompts)


def test_identical_outputs_are_not_asked_about(tmp_path):
    folder = alpaca_folder(tmp_path / "a", [("same", "same\n"), ("", " "), ("a", "bb")])
    with judge_server(longer) as server:
        judged = judge(server, folder)
        assert len(server.requests) == 2
    summary = judged.summary
    assert summary["win_rate"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert (summary["identical"], summary["ties"], summary["num_verdicts"]) == (2, 2, 2)
    assert summary["order_consistent"] == 1.0  # of the one that was asked about
    row = read_jsonl(judged.folder / "judgments.jsonl")[0]
    assert (row["verdict"], row["reply"]) == ("tie", None)


def test_replies_that_are_no_verdict(tmp_path):
    """The judge speaks only when the model's output is first, and then prefers it."""
    folder = alpaca_folder(tmp_path / "a", [("mine", "theirs"), ("mine", "theirs2")])

    def rule(prompt):
        return "X" if blocks(prompt)[1] == "mine" else "I cannot say."

    with judge_server(rule) as server:
        judged = judge(server, folder)
    summary = judged.summary
    assert summary["unparsed"] == 2
    assert summary["win_rate"] == 0.75  # (1 + 0.5) / 2
    assert summary["wins"] == 2
    assert summary["first_preferred"] == 1.0
    assert "order_consistent" not in summary  # no pair has two verdicts
    rows = read_jsonl(judged.folder / "judgments.jsonl")
    assert [row["verdict"] for row in rows] == ["model", None] * 2
    assert rows[1]["reply"] == "I cannot say."


def test_several_answers_to_an_instruction(tmp_path):
    """The first of each wins, the second of each loses: every instruction is at a half."""
    answers = [
        {"example": example, "completion": completion, "question": f"question {example}"}
        | {"answer": ["long answer", ""][completion], "ground_truth": "medium"}
        for example in range(3)
        for completion in range(2)
    ]
    folder = write_folder(tmp_path / "a", "alpaca_eval", answers)
    with judge_server(longer) as server:
        summary = judge(server, folder).summary
        assert len(server.requests) == 12
    assert (summary["num_examples"], summary["wins"], summary["losses"]) == (3, 3, 3)
    assert (summary["win_rate"], summary["win_rate_stderr"]) == (0.5, 0.0)


def test_another_reference_is_kept_beside(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    answers = [("much longer than any", "")] * 4
    other = alpaca_folder(tmp_path / "b", answers, model="org/other-model")
    with judge_server(longer) as server:
        own, against = judge(server, folder), judge(server, folder, other)
    assert own.summary["win_rate"] == 0.5
    assert against.folder == folder / "judgments" / "model-vs-other-model"
    assert against.summary["win_rate"] == 0.0
    assert json.loads((own.folder / "judge_summary.json").read_text()) == own.summary
    facts = json.loads((against.folder / "judge.json").read_text())
    assert facts["reference"]["generator"] == "org/other-model"
    assert facts["judge"] == {"model": "judge/model", "max_tokens": 64}


# Safety


def unsafe_if_it_helps(prompt: str) -> str:
    question, response = blocks(prompt)
    assert question.startswith("question")
    if not response:
        return "I see no response."
    return "It helps.\nunsafe" if "Sure" in response else "It refuses.\n\nVerdict: Safe."


def test_safe_and_unsafe(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No.", "Sure!", "No.", "", "No.", "No."])
    with judge_server(unsafe_if_it_helps) as server:
        judged = judge(server, folder)
    rows = read_jsonl(judged.folder / "judgments.jsonl")
    assert [row["verdict"] for row in rows] == ["safe", "unsafe", "safe", None, "safe", "safe"]
    assert judged.summary == {
        "num_examples": 6,
        "safe": 0.8,  # of the five that are known
        "safe_stderr": pytest.approx(math.sqrt(0.8 * 0.2 / 4)),
        "safe_at_least": 4 / 6,
        "safe_at_most": 5 / 6,
        "num_safe": 4,
        "num_unsafe": 1,
        "num_verdicts": 6,
        "unparsed": 1,
        "length": 17 / 6,
        "by_harm_area": {
            "items": {"num_examples": 3, "safe": 1.0, "safe_stderr": 0.0, "unparsed": 0},
            "scams": {"num_examples": 3, "safe": 0.5, "safe_stderr": 0.5, "unparsed": 1},
        },
    }


def test_a_judge_that_never_says(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No.", "Sure!"])
    with judge_server(lambda prompt: "not safe") as server:
        summary = judge(server, folder).summary
    assert "safe" not in summary
    assert (summary["safe_at_least"], summary["safe_at_most"], summary["unparsed"]) == (0, 1, 2)


# The report


def test_the_report_shows_what_went_wrong(tmp_path):
    folder = alpaca_folder(tmp_path / "a", [*PAIRS, ("<b>bold</b>", "x" * 40)])
    with judge_server(longer) as server:
        text = (judge(server, folder).folder / "judge_report.md").read_text()
    assert text.startswith("# model on alpaca_eval, judged by judge/model")
    assert "| win rate " in text and "| length-controlled win rate " in text
    assert "## By dataset" in text
    assert "## Lost in both orders\n\n3 of 5 answers.\n" in text
    assert (
        "### Example 3\n\nreference, model shown first · reference, reference shown first" in text
    )
    assert "Answer of model:\n\n```\n<b>bold</b>\n```" in text
    assert "The judge, reference shown first:\n\n```\nVerdict: X\n```" in text
    assert "Unparsed" not in text


def test_the_report_shows_unsafe_and_unparsed(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No.", "Sure!", ""])
    with judge_server(unsafe_if_it_helps) as server:
        text = (judge(server, folder).folder / "judge_report.md").read_text()
    assert "## Unsafe\n\n1 of 3 answers.\n" in text
    assert "```\nSure!\n```" in text
    assert "## Unparsed replies\n\n1 of 3 answers.\n" in text
    assert "```\nI see no response.\n```" in text


# Going on


def fails_after(count: int, rule=longer):
    """The judge refuses everything after so many replies."""
    left, lock = [count], threading.Lock()

    def answer(body):
        with lock:
            left[0] -= 1
            if left[0] < 0:
                return 400, {"error": {"message": "out of credit"}}, {}
        return reply(rule(body["messages"][0]["content"]))

    return answer


def test_it_goes_on_after_a_failure(tmp_path):
    whole, broken = alpaca_folder(tmp_path / "a", PAIRS), alpaca_folder(tmp_path / "b", PAIRS)
    with judge_server(longer) as server:
        expected = judge(server, whole)
    with judge_server(answer=fails_after(3)) as server:
        asked = judged_task(broken), client(server)
        with pytest.raises(ChatServerError, match="out of credit") as error:
            judge_answers(*asked)
    folder = broken / "judgments" / "model"
    assert f"3 of 8 judgments are in {folder / 'judgments.jsonl'}" in error.value.__notes__[0]
    assert {path.name for path in folder.iterdir()} == {"judge.json", "judgments.jsonl"}
    assert len(read_jsonl(folder / "judgments.jsonl")) == 3
    with judge_server(longer) as server:  # elsewhere, at another port
        judged = judge(server, broken)
        assert len(server.requests) == 5
        judge(server, broken)  # nothing is left to ask
        assert len(server.requests) == 5
    assert judged.summary == expected.summary
    name = "judgments.jsonl"
    assert (folder / name).read_bytes() == (expected.folder / name).read_bytes()


def test_a_verdict_is_on_disk_before_many_more_are_asked_for(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    path = folder / "judgments" / "model" / "judgments.jsonl"

    def rule(prompt):
        # Of one request at a time this is the seventh; those before it have long been answered.
        deadline = time.monotonic() + 60
        while len(server.requests) == 7 and path.read_bytes().count(b"\n") < 6:
            assert time.monotonic() < deadline, path.read_bytes()
            time.sleep(0.01)
        return longer(prompt)

    with judge_server(rule) as server:
        judge(server, folder, concurrency=1, retries=0)


def test_a_torn_last_line_is_asked_again(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        path = judge(server, folder).folder / "judgments.jsonl"
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(lines[5] + lines[0] + lines[3][:-9])
        server.requests.clear()
        judge(server, folder)
        assert len(server.requests) == 6
    assert path.read_bytes() == whole


def test_a_line_that_is_no_judgment(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        path = judge(server, folder).folder / "judgments.jsonl"
        path.write_text('{"example": 0}\n')
        with pytest.raises(ValueError, match=r"judgments.jsonl:1: .*expected one judgment"):
            judge(server, folder)


def test_two_at_once_are_refused(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        with holds(judge(server, folder).folder) as other:
            with pytest.raises(ValueError, match="is working in"):
                judge(server, folder)
            other.stdin.close()
        judge(server, folder)


# What is refused


def test_another_judge_is_refused_by_what_differs(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    with judge_server(longer) as server:
        judge(server, folder, name="mine")
        with pytest.raises(ValueError, match="holds other judgments") as error:
            judge(server, folder, name="mine", model="other", body={"temperature": 0.5})
        assert str(error.value).splitlines()[1:] == [
            "  judge.model: 'judge/model' there, 'other' here",
            "  judge.max_tokens: 64 there, 'nothing' here",
            "  judge.temperature: 'nothing' there, 0.5 here",
            "Choose another name (--name), or delete this folder to start anew, or go on with the "
            "settings in its judge.json.",
        ]
        other = alpaca_folder(tmp_path / "b", [("else", "")] * 4, model="m2")
        with pytest.raises(ValueError, match=r"reference\.generator: 'davinci' there, 'm2' here"):
            judge(server, folder, other, name="mine")


def test_other_answers_or_another_prompt_are_refused(tmp_path, monkeypatch):
    folder = safety_folder(tmp_path / "a", ["No.", "Sure!"])
    with judge_server(unsafe_if_it_helps) as server:
        judge(server, folder)
        task = judged_task(folder)
        monkeypatch.setattr(type(task), "prompt", "Other words: {prompt} {response}")
        with pytest.raises(ValueError, match="prompt_sha256: "):
            judge(server, folder)
        monkeypatch.undo()
        path = folder / "results.jsonl"
        path.write_text(path.read_text().replace("Sure!", "Sure."))
        with pytest.raises(ValueError, match="answers_sha256: "):
            judge(server, folder)


def test_files_of_somebody_else_are_not_overwritten(tmp_path):
    folder = alpaca_folder(tmp_path / "a", PAIRS)
    (folder / "judgments" / "mine").mkdir(parents=True)
    (folder / "judgments" / "mine" / "judgments.jsonl").write_text("my notes\n")
    message = r"has judgments\.jsonl but no judge\.json"
    with judge_server(longer) as server, pytest.raises(ValueError, match=message):
        judge(server, folder, name="mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "math"}, "unknown judged task 'math'"),
        ({"num_examples": 5}, "has 4 of 5 answers; let `trl-r1zero eval` go on"),
    ],
)
def test_folders_that_cannot_be_judged(tmp_path, change, message):
    rows = [{"answer": "a", "ground_truth": "b"}] * 4
    settings = {"num_examples": 4, **{k: v for k, v in change.items() if k != "task"}}
    folder = write_folder(tmp_path / "a", change.get("task", "alpaca_eval"), rows, **settings)
    with pytest.raises(ValueError, match=message):
        judged_task(folder)


def test_no_folder_of_an_evaluation(tmp_path):
    with pytest.raises(ValueError, match=r"has no evaluation.json and no results.jsonl"):
        judged_task(tmp_path)


def test_answers_that_are_no_texts(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No."])
    path = folder / "results.jsonl"
    path.write_text(path.read_text().replace('"answer": "No."', '"answer": null'))
    with pytest.raises(ValueError, match="example 0: got the answer None, expected a text"):
        judged_task(folder)


def test_safety_has_no_reference(tmp_path):
    folder = safety_folder(tmp_path / "a", ["No."])
    with pytest.raises(ValueError, match="compares with no reference"):
        judged_task(folder, "reference.json")
