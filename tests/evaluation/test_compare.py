"""Comparisons by hand-checkable arithmetic, and what must not be compared."""

import json
import math

import pytest
from judging import alpaca_folder, blocks, graded_folder, judge_server, safety_folder, write_folder

from trl_r1zero.evaluation.compare import compare_folders, paired_difference
from trl_r1zero.evaluation.evaluated import EvaluatedFolder
from trl_r1zero.evaluation.judge import judge_answers
from trl_r1zero.evaluation.judged_tasks import judged_task
from trl_r1zero.generation.chat_client import ChatClient


def cells(text: str, folder) -> dict[str, str]:
    """The row of a folder in the table that has it."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    header: list[str] = []
    for line in lines:
        row = [cell.strip() for cell in line]
        if row[0] == "folder":
            header = row
        elif row[0] == str(folder):
            return dict(zip(header, row, strict=True))
    raise AssertionError(f"no row of {folder} in\n{text}")


def judge(folder, rule, name="judge", **settings):
    with judge_server(rule) as server:
        client = ChatClient(server.url, retries=0, **settings)
        judge_answers(judged_task(folder), client, name=name)


# Arithmetic


def keyed(*values: float, start: int = 0) -> dict[tuple[str, int], float]:
    return {(f"q{start + number}", 0): value for number, value in enumerate(values)}


def test_a_paired_difference():
    paired = paired_difference(keyed(1, 1, 0, 1), keyed(0, 1, 0, 0))
    assert (paired.difference, paired.num_common) == (0.5, 4)
    # Differences 1, 0, 0, 1: squares about the mean sum to 1; over 4 * 3.
    assert paired.stderr == pytest.approx(math.sqrt(1 / 12))
    assert not paired.is_clear  # 0.5 < 1.96 * 0.289


def test_what_both_find_hard_cancels_out():
    easy_and_hard = [1.0] * 50 + [0.0] * 50
    better = [1.0] * 55 + [0.0] * 45
    paired = paired_difference(keyed(*better), keyed(*easy_and_hard))
    assert paired.difference == pytest.approx(0.05)
    assert paired.stderr == pytest.approx(math.sqrt(0.05 * 0.95 / 99))
    assert paired.is_clear
    # Unpaired, the error is three times as large, and nothing would be seen.
    assert paired.stderr < math.sqrt(2 * 0.25 / 99) / 3


def test_only_common_questions_count():
    paired = paired_difference(keyed(1, 1, 1, start=2), keyed(0, 0, 0, 1))
    assert (paired.difference, paired.num_common) == (0.5, 2)
    apart = paired_difference(keyed(1, 1), keyed(0, start=9))
    assert math.isnan(apart.difference) and apart.num_common == 0
    assert not apart.is_clear


def test_the_same_question_twice_is_two_questions(tmp_path):
    rows = [{"question": question, "reward": 1.0} for question in "aab"]
    folder = EvaluatedFolder.read(write_folder(tmp_path / "a", "math", rows))
    assert folder.question_keys == {0: ("a", 0), 1: ("a", 1), 2: ("b", 0)}


# Graded tasks


def test_accuracies_and_their_difference(tmp_path):
    base = graded_folder(tmp_path / "base", [0, 0, 1, 1, -1, 0, 0, 1], model="base")
    tuned = graded_folder(tmp_path / "tuned", [1, 1, 1, 1, 1, 1, 0, 1], model="org/tuned")
    text = compare_folders([base, tuned])
    assert text.startswith("## math\n\n| folder ")
    assert cells(text, base) == {
        "folder": str(base),
        "model": "base",
        "prompt": "prompt",
        "questions": "8",
        "accuracy": f"0.3750 ± {math.sqrt(3 / 8 * 5 / 8 / 7):.4f}",
        "unparsed": "1",
        "difference": "baseline",
        "common": "",
    }
    # Differences 1, 1, 0, 0, 1, 1, 0, 0.
    row = cells(text, tuned)
    assert row["model"] == "org/tuned"
    assert row["difference"] == f"+0.5000 ± {math.sqrt(0.25 / 7):.4f} *"
    assert row["common"] == "8"
    assert "Differences are to" in text and "Warning" not in text


def test_a_difference_that_is_not_clear_is_not_marked(tmp_path):
    a = graded_folder(tmp_path / "a", [0, 1, 0, 1])
    b = graded_folder(tmp_path / "b", [1, 0, 0, 0])
    assert cells(compare_folders([a, b]), b)["difference"] == "-0.2500 ± 0.4787"


def test_several_completions_of_a_question_are_one_value(tmp_path):
    rewards = {"a": [[1, 0], [1, 1], [0, 0]], "b": [[1, 1], [1, 1], [0, 1]]}
    folders = []
    for name, of_examples in rewards.items():
        rows = [
            {"example": e, "completion": c, "question": f"q{e}", "reward": float(reward)}
            for e, of_example in enumerate(of_examples)
            for c, reward in enumerate(of_example)
        ]
        folders.append(write_folder(tmp_path / name, "math", rows))
    text = compare_folders(folders)
    assert cells(text, folders[0])["questions"] == "3"
    assert cells(text, folders[0])["accuracy"] == "0.5000 ± 0.2887"
    # Differences 0.5, 0, 0.5.
    assert cells(text, folders[1])["difference"] == "+0.3333 ± 0.1667 *"
    assert "unparsed" not in cells(text, folders[0])  # nothing says what the answers are


def test_another_baseline(tmp_path):
    a, b, c = (
        graded_folder(tmp_path / n, r) for n, r in {"a": [1, 1], "b": [0, 1], "c": [0, 0]}.items()
    )
    text = compare_folders([a, b], [c])
    assert cells(text, c)["difference"] == "baseline"
    assert cells(text, a)["difference"].startswith("+1.0000")
    assert text.index(str(c)) < text.index(str(a)) < text.index(str(b))
    assert cells(compare_folders([a, b], [b]), a)["difference"].startswith("+0.5000")
    with pytest.raises(ValueError, match="second baseline of math"):
        compare_folders([a], [b, c])


def test_a_table_for_each_task(tmp_path):
    math_folder = graded_folder(tmp_path / "m", [1, 0], "math")
    gsm8k = [graded_folder(tmp_path / f"g{n}", [1, n], "gsm8k") for n in (0, 1)]
    text = compare_folders([gsm8k[0], math_folder, gsm8k[1]])
    assert text.index("## gsm8k") < text.index(str(gsm8k[1])) < text.index("## math")
    assert text.count("Differences are to") == 1  # math has but one
    assert cells(text, gsm8k[1])["difference"].startswith("+0.5000")


def test_prompts_may_differ_but_sampling_is_compared(tmp_path):
    rows = [{"prompt": f"other words: {n}", "reward": 1.0, "question": f"q{n}"} for n in range(3)]
    same = [{"reward": 0.0, "question": f"q{n}"} for n in range(3)]
    sampling = {"temperature": 0.0, "max_tokens": 64}
    a = write_folder(tmp_path / "a", "math", same, sampling={**sampling, "stop": []})
    b = write_folder(tmp_path / "b", "math", rows, sampling={**sampling, "stop": ["</answer>"]})
    c = write_folder(
        tmp_path / "c", "math", rows, sampling={**sampling, "max_tokens": 9, "stop": []}
    )
    text = " ".join(compare_folders([a, b, c]).split())
    assert text.count("Warning: ") == 1
    shown = f"Warning: {c} was sampled with max_tokens 9, {a} with max_tokens 64."
    assert shown.replace("_", "") in text.replace("_", "")


def test_other_rewards_are_named(tmp_path):
    rewards = {"a": "x.strict", "b": "x.strict", "c": "x.lenient"}
    a, b, c = (
        graded_folder(tmp_path / name, [0, 1, 1, 1], reward=reward)
        for name, reward in rewards.items()
    )
    text = " ".join(compare_folders([a, b, c]).replace("\\", "").split())
    assert text.count("Warning: ") == 1
    assert f"Warning: {c} was graded by x.lenient, {a} by x.strict." in text


def test_questions_are_prompts_where_there_are_none(tmp_path):
    rows = [{"prompt": f"p{n}", "question": None, "reward": 1.0} for n in range(2)]
    a, b = (write_folder(tmp_path / name, "math", rows[: 2 - n]) for n, name in enumerate("ab"))
    assert cells(compare_folders([a, b]), b)["common"] == "1"


# Judged tasks


def longer_than_four(prompt: str) -> str:
    _, x, y = blocks(prompt)
    if "unsure" in (x, y):
        return "hm"
    return "X" if len(x) > len(y) else "Y"


def test_judged_by_preferences(tmp_path):
    a = alpaca_folder(tmp_path / "a", [("1", "ref"), ("long", "ref"), ("unsure", "ref")])
    b = alpaca_folder(tmp_path / "b", [("long", "ref"), ("long", "ref"), ("long", "ref")])
    for folder in (a, b):
        judge(folder, longer_than_four)
    text = compare_folders([a, b])
    assert "Judged by judge/model against davinci." in text
    row = cells(text, a)
    assert row["win rate"] == "0.5000 ± 0.2887"  # 0, 1, 0.5
    assert row["unparsed"] == "2"
    summary = json.loads((a / "judgments" / "judge" / "judge_summary.json").read_text())
    assert row["length-controlled"] == (
        f"{summary['length_controlled_win_rate']:.4f} ± "
        f"{summary['length_controlled_win_rate_stderr']:.4f}"
    )
    assert cells(text, b)["difference"] == "+0.5000 ± 0.2887"


def test_judged_for_safety(tmp_path):
    def rule(prompt):
        return {"No.": "safe", "Sure!": "unsafe"}.get(blocks(prompt)[1], "hm")

    a = safety_folder(tmp_path / "a", ["Sure!", "Sure!", "hm", "No."])
    b = safety_folder(tmp_path / "b", ["No.", "No.", "No.", "hm"])
    for folder in (a, b):
        judge(folder, rule)
    text = compare_folders([a, b])
    assert cells(text, a)["safe"] == "0.3333 ± 0.3333"
    assert cells(text, b)["safe"] == "1.0000 ± 0.0000"
    # Questions 2 and 3 have no verdict on one side or the other.
    assert cells(text, b)["common"] == "2"
    assert cells(text, b)["difference"] == "+1.0000 ± 0.0000 *"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other/judge"}, '"model": "other/judge"'),
        ({"body": {"max_tokens": 3}}, '"max_tokens": 3'),
    ],
)
def test_another_judge_is_not_compared_with(tmp_path, change, message):
    a, b = (alpaca_folder(tmp_path / name, [("long", "ref")] * 2) for name in "ab")
    judge(a, longer_than_four)
    judge(b, longer_than_four, **change)
    text = compare_folders([a, b])
    assert (cells(text, b)["difference"], cells(text, b)["common"]) == ("-", "")
    shown = " ".join(text.replace("\\", "").split())
    assert f"No difference for {b}, which was not judged as {a} was: judge {{" in shown
    assert message in shown


def test_several_judgments_must_be_chosen_from(tmp_path):
    a = alpaca_folder(tmp_path / "a", [("long", "ref")] * 2)
    judge(a, longer_than_four, name="one")
    judge(a, lambda prompt: "X", name="two")
    with pytest.raises(ValueError, match=r"several judgments: one, two; choose one .*--judgments"):
        compare_folders([a])
    assert cells(compare_folders([a], judgments="one"), a)["win rate"].startswith("1.0000")
    assert cells(compare_folders([a], judgments="two"), a)["win rate"].startswith("0.5000")


# What is left out, and what is an error


def test_what_cannot_be_compared_is_left_out_by_name(tmp_path):
    whole = graded_folder(tmp_path / "whole", [1, 0])
    part = graded_folder(tmp_path / "part", [1, 0], num_examples=5)
    unjudged = safety_folder(tmp_path / "unjudged", ["No."])
    free = write_folder(tmp_path / "free", "poems", [{"answer": "Roses"}])
    text = compare_folders([part, whole, unjudged, free])
    assert cells(text, whole)["difference"] == "baseline"
    shown = " ".join(text.replace("\\", "").split())
    assert f"Left out: {part}: 2 of 5 answers are there" in shown
    assert f"Left out: {unjudged}: it is not judged; `trl-r1zero judge {unjudged}" in shown
    assert f"Left out: {free}: its answers have no reward." in shown
    with pytest.raises(ValueError, match=r"baseline cannot be compared with: .*2 of 5 answers"):
        compare_folders([whole], [part])
    with pytest.raises(ValueError, match=r"nothing to compare:\n  .*part: 2 of 5"):
        compare_folders([part, unjudged])


def test_judgments_that_do_not_fit_are_left_out(tmp_path):
    a, b, c = (safety_folder(tmp_path / name, ["No.", "No."]) for name in "abc")
    for folder in (a, b, c):
        judge(folder, lambda prompt: "safe")
    (b / "judgments" / "judge" / "judge_summary.json").unlink()
    path = c / "results.jsonl"
    path.write_text(path.read_text().replace("No.", "No!"))
    shown = " ".join(compare_folders([a, b, c]).replace("\\", "").split())
    assert f"Left out: {b}: it is not judged to the end" in shown
    assert f"Left out: {c}: {c / 'judgments' / 'judge'} is of other answers" in shown


def test_errors(tmp_path):
    folder = graded_folder(tmp_path / "a", [1, 0])
    with pytest.raises(ValueError, match="is given twice"):
        compare_folders([folder, f"{folder}/"])
    with pytest.raises(ValueError, match=r"has no evaluation.json and no results.jsonl"):
        compare_folders([folder, tmp_path])
    with pytest.raises(ValueError, match="no folder is given"):
        compare_folders([])
    (folder / "results.jsonl").write_text('{"example": 0}\n')
    with pytest.raises(ValueError, match=r"results.jsonl:1: .*expected one row"):
        compare_folders([folder])
