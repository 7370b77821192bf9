"""Rewards of one response as rewards of any TRL trainer."""

import asyncio
import inspect
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from launch_rewards import hangs_on_e
from tiny_models import make_tiny_model
from trl import GRPOConfig, GRPOTrainer

from trl_r1zero import r1_zero_reward_fn
from trl_r1zero.functional.advantages import compute_rollout_rewards
from trl_r1zero.rewards import explain
from trl_r1zero.trainers import TRLReward
from trl_r1zero.trainers.rewards import as_trl_rewards


def equals(response: str, ground_truth: str) -> dict[str, float]:
    right = float(response == ground_truth)
    return {"reward": right, "format_reward": 1.0, "answer_reward": right}


def test_one_reward_per_completion_in_order():
    reward = TRLReward(equals)
    assert reward(prompts=["p"] * 3, completions=["1", "2", "3"], ground_truth=["1", "x", "3"]) == [
        1.0,
        0.0,
        1.0,
    ]
    assert reward(prompts=[], completions=[], ground_truth=[]) == []


def test_parts_are_reported_one_value_per_completion():
    logged = {}
    TRLReward(equals)(["p", "p"], ["1", "2"], ["1", "1"], log_extra=logged.__setitem__)
    assert logged == {"format_reward": [1.0, 1.0], "answer_reward": [1.0, 0.0]}


def test_the_name_is_that_of_the_function():
    # TRL names its metrics rewards/<name>/mean.
    assert TRLReward(r1_zero_reward_fn).__name__ == "r1_zero_reward_fn"


def test_a_ground_truth_for_each_completion():
    with pytest.raises(ValueError, match="zip"):
        TRLReward(equals)(["p", "p"], ["1", "2"], ["1"])


def test_signature_takes_what_trl_passes():
    inspect.signature(TRLReward(equals)).bind(
        prompts=["p"],
        completions=["c"],
        completion_ids=[[1]],
        ground_truth=["c"],
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        another_column=[1],
    )


def test_it_works_in_the_stock_trainer(tokenizer, tmp_path):
    def counts(response: str, ground_truth: str) -> dict[str, float]:
        return {"reward": float(len(response)), "truth": float(ground_truth)}

    trainer = GRPOTrainer(
        model=make_tiny_model(tokenizer),
        reward_funcs=TRLReward(counts),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["1+1=", "2+2="], "ground_truth": ["2", "4"]}),
        processing_class=tokenizer,
    )
    trainer.train()
    completions, rewards = trainer._logs["completion"], trainer._logs["rewards"]["counts"]
    assert list(rewards) == [float(len(text)) for text in completions]
    assert sorted(trainer._logs["extra"]["truth"]) == [2.0, 2.0, 4.0, 4.0]


def test_a_row_that_hangs_costs_itself_only():
    logged, metrics = {}, {}
    reward = TRLReward(hangs_on_e, workers=1, deadline_seconds=1.0)
    rewards = reward(
        ["p"] * 3,
        ["1", "e", "1 2 3"],
        ["x"] * 3,
        log_extra=logged.__setitem__,
        log_metric=metrics.__setitem__,
    )
    reward.grader.close()
    assert rewards == [1.0, 0.0, 1.0]
    assert logged["format_reward"] == [1.0, 0.0, 1.0]
    assert logged["rule"] == [None, "reward_timeout", None]
    assert metrics == {"reward_failures": pytest.approx(1 / 3)}


def test_rewards_that_can_explain_say_why():
    logged = {}
    answers = ["</think> <answer> 4 </answer>", "</think> <answer> 5 </answer>", "4"]
    rewards = TRLReward(r1_zero_reward_fn)(
        ["p"] * 3, answers, ["4"] * 3, log_extra=logged.__setitem__
    )
    assert rewards == [r1_zero_reward_fn(answer, "4")["reward"] for answer in answers]
    assert logged["rule"] == [explain(answer, "4").rule for answer in answers]
    assert logged["rule"][2] == "no_think_answer_tags"


def constant(value):
    def reward(completions, **columns):
        return [0.5, value]

    return reward


def constant_later(value):
    async def reward(completions, **columns):
        return [0.5, value]

    return reward


def given_by(kind, value) -> list[float]:
    (reward,) = as_trl_rewards(kind(value))
    assert reward.__name__ == "reward"  # TRL names its metrics so
    given = reward(prompts=["p"] * 2, completions=["a", "b"], completion_ids=[[1], [2]])
    return asyncio.run(given) if inspect.iscoroutine(given) else given


@pytest.mark.parametrize("kind", [constant, constant_later])
def test_of_trl_s_own_kinds_text_is_no_number_and_the_row_is_named(kind):
    assert inspect.iscoroutinefunction(as_trl_rewards(kind(1))[0]) == (kind is constant_later)
    for value in (1, True, np.float32(1), np.bool_(True), torch.tensor(1.0), np.array(1)):
        assert given_by(kind, value) == [0.5, 1.0]
    assert math.isnan(given_by(kind, None)[1])
    for value in ("1", np.str_("1"), b"1", [1.0], math.inf):
        with pytest.raises(
            ValueError, match=r"reward gave .* for row 1, the response 'b'; a reward"
        ):
            given_by(kind, value)


def test_the_primitive_takes_numbers_alone_too():
    with pytest.raises(ValueError, match=r"f gave '1' \(str\) for row 1, the response 'b'"):

        def f(response, truth):
            return {"reward": "1" if response == "b" else 1.0}

        compute_rollout_rewards(f, ["a", "b"], ["t", "t"])
