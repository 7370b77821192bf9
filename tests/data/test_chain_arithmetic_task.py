"""Chain arithmetic: what is asked, the honest trace, and how poor the poor traces are."""

import hashlib
import random
import re
from itertools import accumulate

import pytest

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.base import split_of_question
from trl_r1zero.data.tasks.chain_arithmetic import (
    TraceNoise,
    noisy_trace,
    parse_chain,
    solve_trace,
)
from trl_r1zero.rewards import r1_zero_reward_fn

STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def test_chain_questions():
    examples = get_task("chain_arithmetic").load()
    assert len(examples) == len({example.question for example in examples}) == 8192
    operand_counts = set()
    for example in examples:
        first, steps = parse_chain(example.question)
        values = list(accumulate([first, *steps]))
        assert all(0 <= value <= 49 for value in values)
        assert all(1 <= abs(step) <= 9 for step in steps)
        assert example.ground_truth == str(values[-1])
        operand_counts.add(len(values))
    assert operand_counts == {3, 4, 5}


def test_chain_splits_are_disjoint_for_all_seeds_and_stable():
    train = get_task("chain_arithmetic", num_train=1000, seed=0).load()
    validation = get_task("chain_arithmetic", seed=1).load(split="validation")
    assert len(validation) == 512
    assert {split_of_question(example.question) for example in train} == {"train"}
    assert {split_of_question(example.question) for example in validation} == {"validation"}
    digest = hashlib.sha256(b"14 + 5 + 9 - 8").digest()
    expected = "validation" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"
    assert split_of_question("14 + 5 + 9 - 8") == expected


def test_chain_generation_is_the_same_on_every_machine():
    # Pinned: a change here changes the data of every recorded run.
    examples = get_task("chain_arithmetic").load(limit=3)
    assert [example.question for example in examples] == [
        "26 - 8 + 4 + 7 + 6",
        "31 + 5 + 2 - 5",
        "0 + 5 - 2 + 1",
    ]
    assert [example.ground_truth for example in examples] == ["35", "33", "4"]


def test_generated_tasks_take_no_source_and_know_their_splits():
    task = get_task("chain_arithmetic")
    with pytest.raises(
        ValueError, match=r"got source 'x.jsonl', expected none, .* remove the source"
    ):
        task.load("x.jsonl")
    with pytest.raises(ValueError, match=r"unknown split 'valid'; did you mean 'validation'\?"):
        task.load(split="valid")


def test_chain_settings_are_checked():
    with pytest.raises(ValueError, match=r"max_operands: got 2, expected at least 3"):
        get_task("chain_arithmetic", max_operands=2)
    with pytest.raises(ValueError, match=r"max_step: got 50, expected at most 49"):
        get_task("chain_arithmetic", max_step=50)
    with pytest.raises(ValueError, match=r"num_train: got 0, expected at least 1"):
        get_task("chain_arithmetic", num_train=0)


def test_solve_trace():
    assert solve_trace("14 + 5 + 9 - 8") == (
        " 14 + 5 = 19 ; 19 + 9 = 28 ; 28 - 8 = 20 </think> <answer> 20 </answer>"
    )


def test_solve_trace_is_always_rewarded():
    task = get_task("chain_arithmetic", num_train=300)
    reward_fn = task.reward_fn(load_prompt(task.default_prompt))
    assert reward_fn is r1_zero_reward_fn
    for example in task.load():
        assert reward_fn(solve_trace(example.question), example.ground_truth)["reward"] == 1.0


@pytest.mark.parametrize(
    "question", ["", "14", "14 +", "14 + 05", "14+5", "14  + 5", "14 * 5", "-1 + 5"]
)
def test_parse_chain_rejects(question):
    with pytest.raises(ValueError, match=r"expected a chain such as '14 \+ 5 - 8'"):
        parse_chain(question)


def traces(noise, questions=2000):
    rng = random.Random(0)
    examples = get_task("chain_arithmetic", num_train=questions).load()
    return [(example, noisy_trace(example.question, rng, noise)) for example in examples]


def only(**probability):
    return TraceNoise(
        **(dict(guess=0.0, step_error=0.0, bad_format=0.0, recheck=0.0) | probability)
    )


def test_noisy_trace_is_reproducible():
    assert traces(TraceNoise(), 50) == traces(TraceNoise(), 50)


def test_noisy_trace_guess_has_no_working_and_is_near():
    for example, trace in traces(only(guess=1.0)):
        guess = re.fullmatch(r" </think> <answer> (\d+) </answer>", trace)
        assert abs(int(guess[1]) - int(example.ground_truth)) <= 5
    # 1 in 11, or more near the ends of 0..49, where the range is cut.
    right = sum(
        r1_zero_reward_fn(trace, example.ground_truth)["reward"]
        for example, trace in traces(only(guess=1.0))
    )
    assert 0.08 < right / 2000 < 0.14


def test_noisy_trace_step_errors_carry_on_and_stay_in_range():
    wrong = total = 0
    for example, trace in traces(only(step_error=0.12)):
        steps = [(int(a), sign, int(b), int(c)) for a, sign, b, c in STEP.findall(trace)]
        first, signed = parse_chain(example.question)
        assert [int(sign + str(b)) for _, sign, b, _ in steps] == signed
        assert [a for a, *_ in steps] == [first, *(c for *_, c in steps[:-1])]
        assert all(0 <= c <= 49 for *_, c in steps)
        assert trace.endswith(f"</think> <answer> {steps[-1][3]} </answer>")
        wrong += sum(c != a + int(sign + str(b)) for a, sign, b, c in steps)
        total += len(steps)
    assert abs(wrong / total - 0.12) < 0.02


def test_noisy_trace_bad_format_is_never_rewarded():
    formats = [
        r1_zero_reward_fn(trace, example.ground_truth)["format_reward"]
        for example, trace in traces(only(bad_format=1.0), 200)
    ]
    assert set(formats) == {0.0}


def test_noisy_trace_recheck_repeats_the_last_step():
    for example, trace in traces(only(recheck=1.0), 200):
        steps = STEP.findall(trace)
        assert len(steps) == len(parse_chain(example.question)[1]) + 1
        assert steps[-1] == steps[-2]
        assert r1_zero_reward_fn(trace, example.ground_truth)["reward"] == 1.0


def test_noisy_trace_shares_are_those_of_the_settings():
    sample = traces(TraceNoise(), 4000)
    scores = [r1_zero_reward_fn(trace, example.ground_truth) for example, trace in sample]
    working = sum("=" in trace for _, trace in sample) / 4000
    formatted = sum(score["format_reward"] for score in scores) / 4000
    accuracy = sum(score["reward"] for score in scores) / 4000
    assert abs(working - 0.55) < 0.03
    assert abs(formatted - 0.85) < 0.03
    assert 0.30 < accuracy < 0.40


def test_trace_noise_is_checked():
    with pytest.raises(ValueError, match=r"guess: got 1.5, expected a probability, 0..1"):
        TraceNoise(guess=1.5)
    with pytest.raises(ValueError, match=r"guess_range: got -1, expected at least 0"):
        TraceNoise(guess_range=-1)
