"""The GRPO trainer on real tiny models: its rollouts, its files, its resume, its errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launch_rewards import hangs_on_e, odd_digits
from peft import LoraConfig
from tiny_grpo import (
    REWARDS,
    TASK,
    gradient_of_update,
    load_tiny,
    make_rollouts,
    make_trainer,
    train_lines,
)
from tiny_models import make_tiny_model
from transformers import TrainerCallback

from trl_r1zero.rewards import r1_zero_reward_fn
from trl_r1zero.trainers import (
    R1ZeroGRPOConfig,
    R1ZeroGRPOTrainer,
    TRLReward,
    grpo_loss,
    read_metrics,
)


def test_on_policy_makes_no_old_log_probs_and_off_policy_makes_them_once(
    tokenizer, tmp_path, monkeypatch
):
    calls, keep_log_probs = [], grpo_loss.keep_log_probs
    for name, settings in {
        "on": {"train_batch_size": 16},
        "off": {"train_batch_size": 8, "epochs_per_rollout_batch": 2, "loss_type": "grpo_clip"},
    }.items():
        trainer = make_trainer(tokenizer, tmp_path / name, **settings)
        monkeypatch.setattr(
            grpo_loss,
            "keep_log_probs",
            lambda *args, name=name: (calls.append(name), keep_log_probs(*args)),
        )
        trainer.train()
        lines = train_lines(tmp_path / name)
        assert len(lines) == (2 if name == "on" else 8)
        assert all(("ratio" in line) == (name == "off") for line in lines)
    assert calls == ["off", "off"]  # once for each of two rollout batches
    # The first update on a rollout batch still has the policy that sampled it: its rows keep what
    # its own forward pass gave.
    assert lines[0]["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert lines[0]["clip_fraction"] == 0.0
    assert lines[1]["ratio"] != 1.0


def test_rollouts_end_at_the_stop_string_and_nothing_after_it_is_trained(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, max_completion_length=24, min_tokens=0, stop=["e", "0"]
    )
    batch = trainer.collect_rollouts([TASK.train_dataset[i // 4] for i in range(16)])
    stopped = [row for row in batch.rollouts if set(row.completion.text) & {"e", "0"}]
    assert 3 <= len(stopped) <= 15
    for row in stopped:
        assert row.completion.text[-1] in "e0"
        assert not set(row.completion.text[:-1]) & {"e", "0"}
        before_last = tokenizer.decode(row.completion.token_ids[:-1])
        assert not set(before_last) & {"e", "0"}  # it ended with the token that completed it
        assert not row.completion.truncated
    eos = tokenizer.eos_token_id
    for row in batch.rollouts:
        if row not in stopped:
            assert row.completion.truncated == (row.completion.token_ids[-1] != eos)
    for micro_batch in trainer.cut(batch.rollouts):
        lengths = [row.length for row in micro_batch.rollouts]
        assert micro_batch.response_mask.sum(1).tolist() == lengths


def test_empty_completions_are_survived(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, rollout_batch_size=8, train_batch_size=8)
    rollouts = make_rollouts(tokenizer, [0, 0, 0, 0, 0, 3, 2, 0], REWARDS, 4)
    gradient = gradient_of_update(trainer, rollouts)
    assert torch.isfinite(gradient).all()
    assert gradient.norm() > 0


def test_truncated_completions_can_be_kept_out_of_the_loss(tokenizer, tmp_path):
    settings = {"max_completion_length": 6, "mask_truncated_completions": True}
    trainer = make_trainer(tokenizer, tmp_path, **settings)
    batch = trainer.collect_rollouts([TASK.train_dataset[i // 4] for i in range(16)])
    for row in batch.rollouts:
        assert row.trained != row.completion.truncated
    for micro_batch in trainer.cut(batch.rollouts):
        for row, mask in zip(micro_batch.rollouts, micro_batch.response_mask, strict=True):
            assert mask.sum() == (row.length if row.trained else 0)
        assert micro_batch.num_sequences == 16  # the denominator stays


def test_validation_grades_every_problem_once_and_reports_errors(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, eval_every=1, num_eval_examples=7)
    metrics = trainer.evaluate()
    rows = [
        json.loads(line)
        for line in (tmp_path / "evaluations" / "grpo_step_00000.jsonl").read_text().splitlines()
    ]
    assert [row["prompt"] for row in rows] == TASK.eval_dataset["prompt"][:7]
    correct = [row["answer_reward"] for row in rows]
    p = sum(correct) / 7
    assert metrics["eval_accuracy"] == pytest.approx(p)
    assert metrics["eval_accuracy_stderr"] == pytest.approx((p * (1 - p) / 6) ** 0.5)
    assert metrics["eval_num_examples"] == 7
    # The same random streams each time: two validations of one policy are equal.
    again = trainer.evaluate()
    assert again["eval_accuracy"] == metrics["eval_accuracy"]
    assert again["eval_length"] == metrics["eval_length"]


def test_validation_does_not_disturb_training(tokenizer, tmp_path):
    curves = []
    for name, eval_every in (("with", 1), ("without", None)):
        make_trainer(tokenizer, tmp_path / name, eval_every=eval_every).train()
        curves.append([(line["loss"], line["reward"]) for line in train_lines(tmp_path / name)])
    assert curves[0] == curves[1]


def test_every_parameter_moves_and_a_run_leaves_its_files(tokenizer, tmp_path):
    model = make_tiny_model(tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = make_trainer(
        tokenizer, tmp_path, model=model, eval_every=1, save_every=1, log_rollouts_every=1
    )
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    for path in (
        "metrics.jsonl",
        "config.json",
        "environment.json",
        "best/best.json",
        "best/model.safetensors",
        "rollouts/grpo_step_00001.md",
        "rollouts/grpo_step_00002.jsonl",
        "evaluations/grpo_step_00000.md",
        "evaluations/grpo_step_00002.jsonl",
        "checkpoint-2/optimizer.pt",
    ):
        assert (tmp_path / path).is_file(), path
    rows, tokens = (
        [json.loads(line) for line in (tmp_path / folder / name).read_text().splitlines()]
        for folder in ("rollouts", "rollouts/tokens")
        for name in ("grpo_step_00002.jsonl",)
    )
    for row, of_row in zip(rows, tokens, strict=True):
        texts, log_probs, entropies = zip(*of_row["tokens"], strict=True)
        assert len(texts) == row["length"]
        if "\ufffd" not in row["response"]:
            assert "".join(texts).startswith(row["response"])
        assert all(value <= 0 for value in log_probs)
        assert sum(entropies) / len(texts) == pytest.approx(row["entropy"], abs=1e-3)
    best = json.loads((tmp_path / "best/best.json").read_text())
    accuracies = [
        line["eval_accuracy"]
        for line in read_metrics(tmp_path)
        if line.get("eval_accuracy") is not None
    ]
    assert best["eval_accuracy"] == max(accuracies[1:])  # a trained model, not the one at the start
    line = train_lines(tmp_path)[0]
    for name in (
        "loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "reward",
        "format_reward",
        "answer_reward",
        "zero_advantage_groups",
        "length/mean",
        "length/max",
        "truncated",
        "tokens_per_second",
        "seconds/step",
        "seconds/generation",
        "seconds/reward",
        "seconds/forward",
        "seconds/backward",
        "grpo_step",
        "elapsed_seconds",
    ):
        assert name in line, name


@pytest.mark.parametrize("settings", [{}, {"train_batch_size": 8, "loss_type": "grpo_clip"}])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path, settings):
    """Metrics and weights, bit for bit, from a checkpoint in the middle."""
    settings = {
        "n_grpo_steps": 4,
        "eval_every": 2,
        "save_every": 2,
        "save_total_limit": None,
        **settings,
    }
    straight = make_trainer(tokenizer, tmp_path / "straight", **settings)
    straight.train()
    halfway = make_trainer(tokenizer, tmp_path / "resumed", **settings)
    updates = halfway.args.updates_per_grpo_step
    halfway.add_callback(StopAfter(2 * updates))
    halfway.train()
    resumed = make_trainer(
        tokenizer, tmp_path / "resumed", model=make_tiny_model(tokenizer, seed=9), **settings
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / f"checkpoint-{2 * updates}"))

    def curve(folder):
        timed = ("seconds", "elapsed", "tokens_per_second", "train_")
        return [
            {k: v for k, v in line.items() if not any(word in k for word in timed)}
            for line in read_metrics(folder)
            if "train_runtime" not in line
        ]

    assert curve(tmp_path / "resumed") == curve(tmp_path / "straight")
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True
        return control


def test_lora_trains_the_adapter_only(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        model=load_tiny(tokenizer, tmp_path),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        beta=0.01,
        train_batch_size=8,
        loss_type="grpo_clip",
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert "kl" in train_lines(tmp_path)[0]


def test_the_kl_of_the_reference_itself_is_zero(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, model=load_tiny(tokenizer, tmp_path), beta=0.1)
    trainer.train()
    first, second = train_lines(tmp_path)
    assert first["kl"] == pytest.approx(0.0, abs=1e-7)
    assert second["kl"] > 1e-6


def test_the_model_goes_where_the_reward_points(tokenizer, tmp_path):
    """A reward for digits: 25 updates make an untrained model write more of them."""

    def digits(response: str, ground_truth: str) -> dict[str, float]:
        return {"reward": sum(character.isdigit() for character in response) / 10}

    trainer = make_trainer(
        tokenizer,
        tmp_path,
        reward=digits,
        n_grpo_steps=25,
        rollout_batch_size=64,
        group_size=8,
        train_batch_size=64,
        learning_rate=5e-3,
    )
    trainer.train()
    rewards = [line["reward"] for line in train_lines(tmp_path)]
    assert sum(rewards[-3:]) / 3 > 3 * sum(rewards[:3]) / 3


def test_settings_that_cannot_work_are_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        make_trainer(tokenizer, tmp_path, temperature=0.0)
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32 needs the fused head"):
        make_trainer(tokenizer, tmp_path, cast_lm_head_to_fp32=True)
    with pytest.raises(ValueError, match="lacks the columns"):
        R1ZeroGRPOTrainer(
            model=make_tiny_model(tokenizer),
            reward_funcs=odd_digits,
            args=R1ZeroGRPOConfig(output_dir=str(tmp_path)),
            train_dataset=TASK.train_dataset.remove_columns("ground_truth"),
            processing_class=tokenizer,
        )
    with pytest.raises(ValueError, match="the training set has 32 prompts"):
        make_trainer(tokenizer, tmp_path, rollout_batch_size=256, train_batch_size=256).train()


def test_reward_functions_of_trl_work_too(tokenizer, tmp_path):
    def trl_reward(completions, **kwargs):
        return [float(len(completion) % 2) for completion in completions]

    make_trainer(tokenizer, tmp_path, reward=[trl_reward, odd_digits]).train()
    line = train_lines(tmp_path)[0]
    assert 0.0 <= line["reward"] <= 2.0
    assert "answer_reward" in line


def test_a_reward_without_a_number_is_an_error(tokenizer, tmp_path):
    def silent(completions, **kwargs):
        return [None] * len(completions)

    with pytest.raises(ValueError, match="a reward function returned None or NaN for row 0"):
        make_trainer(tokenizer, tmp_path, reward=silent).train()


def test_output_folder_is_the_only_place_written_to(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(tokenizer, tmp_path / "run", eval_every=1).train()
    assert {path.name for path in Path(tmp_path).iterdir()} == {"run"}


def test_a_reward_that_hangs_costs_its_rows_and_not_the_run(tokenizer, tmp_path):
    reward = TRLReward(hangs_on_e, workers=1, deadline_seconds=0.5)
    try:
        make_trainer(tokenizer, tmp_path, reward=reward, log_rollouts_every=1).train()
    finally:
        reward.grader.close()
    lines = train_lines(tmp_path)
    assert len(lines) == 2
    rows = [
        json.loads(row)
        for table in sorted((tmp_path / "rollouts").glob("*.jsonl"))
        for row in table.read_text().splitlines()
    ]
    hung = [row for row in rows if "e" in row["response"]]
    assert 0 < len(hung) < len(rows)
    assert all(row["reward"] == 0.0 and row["rule"] == "reward_timeout" for row in hung)
    assert sum(line["reward_failures"] * 16 for line in lines) == pytest.approx(len(hung))


def test_evaluations_say_why_an_answer_is_wrong(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, eval_every=1, reward=r1_zero_reward_fn)
    trainer.evaluate()
    rows = (tmp_path / "evaluations" / "grpo_step_00000.jsonl").read_text().splitlines()
    assert {json.loads(row)["rule"] for row in rows} == {"no_think_answer_tags"}


def test_validation_samples_as_rollouts_do_but_for_its_own_settings():
    args = R1ZeroGRPOConfig(
        output_dir="unused",
        temperature=0.7,
        top_k=5,
        min_p=0.1,
        eval_temperature=0.2,
        eval_top_p=0.9,
    )
    rollouts, validation = args.rollout_sampling(["x"]), args.validation_sampling(["x"])
    assert (rollouts.temperature, rollouts.top_p, rollouts.top_k, rollouts.min_p) == (
        0.7,
        1,
        5,
        0.1,
    )
    assert validation == replace(rollouts, temperature=0.2, top_p=0.9)
