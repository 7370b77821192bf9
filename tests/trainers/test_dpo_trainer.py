"""The DPO trainer on real tiny models: its arithmetic, its reference, its rows, its files."""

import copy
import json
import logging
import math
import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import make_tiny_model

from trl_r1zero import compute_per_instance_dpo_loss
from trl_r1zero.trainers import R1ZeroDPOConfig, R1ZeroDPOTrainer, read_metrics
from trl_r1zero.trainers.preference import encode_pair
from trl_r1zero.trainers.results import remove_results

LN2 = math.log(2)
WORDS = ["apple", "bridge", "cloud", "river", "lamp", "stone"]


def preferences(number: int, seed: int) -> Dataset:
    """A synthetic preference: the response that ends in "yes" goes before the one in "no"."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        words = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(3)]
        rows.append(
            {
                "instruction": f"Say {words[0]}.",
                "chosen": f"{words[1]} yes",
                "rejected": f"{words[2]} no",
            }
        )
    return Dataset.from_list(rows)


PAIRS = preferences(20, seed=0)


def make_dpo_trainer(
    tokenizer, output_dir, *, pairs=PAIRS, eval_pairs=None, model=None, **settings
) -> R1ZeroDPOTrainer:
    peft_config, ref_model = settings.pop("peft_config", None), settings.pop("ref_model", None)
    settings = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "eval_every": None,
        "save_every": None,
        "disable_tqdm": True,
        **settings,
    }
    trainer = R1ZeroDPOTrainer(
        model=make_tiny_model(tokenizer) if model is None else model,
        args=R1ZeroDPOConfig(output_dir=str(output_dir), **settings),
        train_dataset=pairs,
        eval_dataset=eval_pairs,
        ref_model=ref_model,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    remove_results(trainer)  # seconds for each run
    return trainer


def train_lines(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "margin" in line]


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def perturbed(model, scale: float = 0.05):
    """Another policy, so that margins are not 0."""
    torch.manual_seed(7)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other


def mean_of_instances(policy, reference, tokenizer, pairs: Dataset, beta: float) -> torch.Tensor:
    losses = [
        compute_per_instance_dpo_loss(
            policy,
            reference,
            tokenizer,
            beta,
            pair["instruction"],
            pair["chosen"],
            pair["rejected"],
        )
        for pair in pairs
    ]
    return torch.stack(losses).mean()


# The loss and its gradient


@pytest.mark.parametrize(
    ("precompute", "fused", "packed", "cuts"),
    [
        (False, False, False, 1),
        (False, False, False, 8),
        (False, True, False, 4),
        (True, False, False, 4),
        (True, False, True, 2),
        (True, False, None, 2),  # with shared prompts
        (False, True, None, 2),
    ],
)
def test_batch_loss_is_the_mean_of_the_losses_of_the_instances(
    tokenizer, tmp_path, precompute, fused, packed, cuts
):
    reference = make_tiny_model(tokenizer).eval()
    policy = perturbed(reference)
    plain = copy.deepcopy(policy)
    expected = mean_of_instances(plain, reference, tokenizer, PAIRS.select(range(8)), beta=0.3)
    assert abs(expected.item() - LN2) > 1e-3
    expected.backward()

    trainer = make_dpo_trainer(
        tokenizer,
        tmp_path,
        model=policy,
        ref_model=copy.deepcopy(reference),
        beta=0.3,
        precompute_ref_log_probs=precompute,
        fused_lm_head=fused,
        pack_rows=packed,
        share_prefixes=packed is None,
        gradient_accumulation_steps=cuts,
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    loss = trainer.training_step(trainer.model, trainer.rows[:8])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(
        flat(p.grad for p in policy.parameters()),
        flat(p.grad for p in plain.parameters()),
        atol=1e-5,
        rtol=1e-4,
    )


def test_shares_of_processes_add_up_to_the_train_batch(tokenizer, tmp_path):
    """Five pairs on two processes."""
    reference = make_tiny_model(tokenizer)
    trainer = make_dpo_trainer(
        tokenizer,
        tmp_path,
        model=perturbed(reference),
        ref_model=reference,
        precompute_ref_log_probs=False,
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=1)

    def gradient(rows) -> torch.Tensor:
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, rows)
        return flat(p.grad for p in trainer.model.parameters())

    rows = trainer.rows[:5]
    whole = gradient(rows)
    shares = []
    for rank in range(2):
        trainer.policy.rank, trainer.policy.processes = rank, 2
        shares.append(gradient(rows))
    torch.testing.assert_close(sum(shares) / 2, whole, atol=1e-6, rtol=1e-5)


def test_training_steps_equal_plain_torch(tokenizer, tmp_path):
    """RMSprop steps, the last train batch a short one; the reference stays where it began."""
    pairs = PAIRS.select(range(12))
    model = make_tiny_model(tokenizer)
    reference, plain = copy.deepcopy(model).eval(), copy.deepcopy(model)
    optimizer = torch.optim.RMSprop(plain.parameters(), lr=1e-4)
    losses = []
    for part in (range(8), range(8, 12)):
        loss = mean_of_instances(plain, reference, tokenizer, pairs.select(part), beta=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    trainer = make_dpo_trainer(
        tokenizer, tmp_path, pairs=pairs, model=model, learning_rate=1e-4, shuffle_dataset=False
    )
    trainer.train()
    lines = train_lines(tmp_path)
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert lines[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert [line["dpo_step"] for line in lines] == [1, 2]
    torch.testing.assert_close(
        flat(trainer.model.parameters()), flat(plain.parameters()), atol=1e-5, rtol=0
    )


# What it learns


def test_learns_a_synthetic_preference(tokenizer, tmp_path):
    settings = {
        "pairs": preferences(128, seed=1),
        "eval_pairs": preferences(50, seed=2),
        "train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "eval_every": 8,
        "save_every": 8,
        "save_total_limit": 2,
    }
    make_dpo_trainer(tokenizer, tmp_path, **settings).train()
    before, *_, after = [line for line in read_metrics(tmp_path) if "eval_loss" in line]
    # Policy and reference agree: no pair has a margin, and a tie is wrong.
    assert before["eval_loss"] == pytest.approx(LN2, abs=1e-5)
    assert (before["eval_accuracy"], before["dpo_step"]) == (0.0, 0)
    assert 0.1 < before["eval_log_prob_accuracy"] < 0.9
    assert after["eval_accuracy"] > 0.95
    # Its own log-probability still depends on the length more than on the last word.
    assert after["eval_log_prob_accuracy"] > before["eval_log_prob_accuracy"]
    assert after["eval_loss"] < 0.5 * LN2
    assert after["eval_margin"] == pytest.approx(
        after["eval_chosen_reward"] - after["eval_rejected_reward"], abs=1e-5
    )
    assert after["eval_num_pairs"] == 50
    assert 0 < after["eval_loss_stderr"] < 0.1
    assert train_lines(tmp_path)[-1]["accuracy"] > 0.9
    assert json.loads((tmp_path / "best" / "best.json").read_text())["eval_accuracy"] > 0.95
    # A resumed run goes on as the uninterrupted one: same pairs, same reference, same numbers.
    expected = train_lines(tmp_path)
    assert [line["dpo_step"] for line in expected] == list(range(1, 17))
    make_dpo_trainer(tokenizer, tmp_path, **settings).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-8")
    )
    lines = train_lines(tmp_path)
    assert [line["dpo_step"] for line in lines] == list(range(1, 17))
    for name in ("loss", "margin", "grad_norm"):
        for line, other in zip(lines, expected, strict=True):
            assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    *_, resumed = [line for line in read_metrics(tmp_path) if "eval_loss" in line]
    assert resumed["eval_loss"] == pytest.approx(after["eval_loss"], abs=1e-6)


def test_validation_by_hand(tokenizer, tmp_path):
    reference = make_tiny_model(tokenizer).eval()
    policy = perturbed(reference).eval()
    pairs = PAIRS.select(range(5))
    losses = torch.stack(
        [
            mean_of_instances(policy, reference, tokenizer, pairs.select([i]), beta=0.1)
            for i in range(5)
        ]
    )
    trainer = make_dpo_trainer(
        tokenizer,
        tmp_path,
        model=policy,
        ref_model=reference,
        eval_pairs=pairs,
        precompute_ref_log_probs=False,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), abs=1e-6)
    assert metrics["eval_loss_stderr"] == pytest.approx(losses.std().item() / 5**0.5, rel=1e-3)
    # The loss of a pair is below ln 2 exactly where its margin is above 0.
    assert metrics["eval_accuracy"] == pytest.approx((losses < LN2).float().mean().item())
    other = trainer.evaluate(eval_dataset=pairs.select(range(1)))
    assert other["eval_loss"] == pytest.approx(losses[0].item(), abs=1e-6)
    assert "eval_loss_stderr" not in other


def test_with_peft_the_reference_is_the_base_model(tokenizer, tmp_path):
    for precompute in (True, False):
        trainer = make_dpo_trainer(
            tokenizer,
            tmp_path / str(precompute),
            precompute_ref_log_probs=precompute,
            learning_rate=1e-3,
            peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
        )
        assert trainer.ref_model is None
        trainer.train()
    with_file, in_memory = (train_lines(tmp_path / str(known)) for known in (True, False))
    for first, second in zip(with_file, in_memory, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    assert in_memory[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert in_memory[-1]["margin"] != 0


def test_a_reference_on_another_device(tokenizer, tmp_path):
    """Where there is an accelerator, the policy is there and the reference is not."""
    reference = make_tiny_model(tokenizer).eval()
    policy = perturbed(reference)
    pairs = PAIRS.select(range(8))
    expected = mean_of_instances(policy, reference, tokenizer, pairs, beta=0.1).item()
    trainer = make_dpo_trainer(
        tokenizer,
        tmp_path,
        model=policy,
        ref_model=reference,
        eval_pairs=pairs,
        precompute_ref_log_probs=False,
        ref_device="cpu",
        bf16=False,
    )
    assert next(trainer.ref_model.parameters()).device == torch.device("cpu")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_the_reference_is_computed_once_for_the_same_pairs_and_model(tokenizer, tmp_path):
    def times(pairs, seed: int = 0) -> list[int]:
        """When the files of the reference were written."""
        make_dpo_trainer(tokenizer, tmp_path, pairs=pairs, model=make_tiny_model(tokenizer, seed))
        return [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("reference/*/cache*"))]

    first = times(PAIRS)
    assert len(first) == 1
    assert times(PAIRS) == first
    assert len(times(PAIRS, seed=1)) == 2  # another reference
    (other,) = times(PAIRS.select(range(10)))  # other pairs, and what is stale is gone
    assert other > first[0]


# Rows


def test_rows_are_in_the_template_with_the_end_token(tokenizer, tmp_path):
    trainer = make_dpo_trainer(tokenizer, tmp_path)
    pair, row = PAIRS[3], trainer.rows[3]
    expected = encode_pair(pair["instruction"], pair["chosen"], pair["rejected"], tokenizer)
    assert replace(row, ref_chosen=None, ref_rejected=None) == expected
    assert row.chosen_ids[-1] == row.rejected_ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(row.shared_ids + row.chosen_ids[:-1])
    assert text.startswith("Below is an instruction")
    assert text.endswith(f"### Response:\n{pair['chosen']}")
    assert math.isfinite(row.ref_chosen)


def test_long_rows_are_dropped_and_counted_or_an_error(tokenizer, tmp_path, caplog):
    lengths = [row.length for row in make_dpo_trainer(tokenizer, tmp_path).rows]
    limit = sorted(lengths)[len(lengths) // 2]
    kept = sum(length <= limit for length in lengths)
    with caplog.at_level(logging.WARNING):
        trainer = make_dpo_trainer(tokenizer, tmp_path, max_length=limit)
    assert len(trainer.rows) == kept < len(lengths)
    assert f"{len(lengths) - kept} of 20 rows are longer than max_length ({limit}" in caplog.text
    with pytest.raises(ValueError, match="set overlong to drop"):
        make_dpo_trainer(tokenizer, tmp_path, max_length=limit, overlong="error")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PAIRS.remove_columns("chosen"), r"lacks the columns \['chosen'\]"),
        (PAIRS.select([]), "train_dataset has no rows"),
    ],
)
def test_data_that_cannot_be_trained_on(tokenizer, tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        make_dpo_trainer(tokenizer, tmp_path, pairs=pairs)


def test_validation_needs_pairs_and_a_reference(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="there is no eval_dataset"):
        make_dpo_trainer(tokenizer, tmp_path, eval_every=1)
    trainer = make_dpo_trainer(tokenizer, tmp_path)
    with pytest.raises(ValueError, match="eval_dataset: got 1 sets; DPO takes one data set"):
        make_dpo_trainer(tokenizer, tmp_path, eval_pairs={"a": PAIRS})
    with pytest.raises(ValueError, match="eval_dataset is missing"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="no reference in memory"):
        trainer.evaluate(eval_dataset=PAIRS)
