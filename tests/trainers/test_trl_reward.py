"""Rewards of one response as rewards of any TRL trainer."""

import inspect

import pytest
from datasets import Dataset
from launch_rewards import hangs_on_e
from tiny_models import make_tiny_model
from trl import GRPOConfig, GRPOTrainer

from trl_r1zero import r1_zero_reward_fn
from trl_r1zero.rewards import explain
from trl_r1zero.trainers import TRLReward


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
