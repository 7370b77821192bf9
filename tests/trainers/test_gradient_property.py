"""Any cut, any order, any number of processes: the gradient is that of the formula, written out.

In float64 (but for the norms of the model, which are float32 in any case), so that nothing but a
wrong formula is above the tolerance.
"""

import random
from itertools import product

import pytest
import torch
from tiny_grpo import TASK, make_trainer
from tiny_models import make_tiny_model
from torch.nn.functional import log_softmax

from trl_r1zero.generation import Completion
from trl_r1zero.trainers.rollouts import Rollout, RolloutBatch

CLIPRANGE = 0.2
CONSTANT = 7.0
TEMPERATURE = 0.7
LOSS_TYPES = ["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]
AGGREGATIONS = ["masked_mean", "masked_normalize", "token_mean"]


def random_rollouts(tokenizer, rng: random.Random, number: int) -> list[Rollout]:
    """Of many lengths; some without advantage, some kept out of the loss. No number is rounded."""
    rollouts = []
    for _ in range(number):
        prompt = TASK.train_dataset[rng.randrange(8)]["prompt"]
        length = rng.choice([1, 1, 2, 3, 5, 8, 13, 30])
        advantage = rng.choice([0.0, 0.0, -1.5, -0.25, 0.5, 1.0])
        old = [-rng.randrange(1, 80) / 16 for _ in range(length)]
        rollouts.append(
            Rollout(
                prompt=prompt,
                ground_truth="1",
                prompt_ids=tokenizer(prompt)["input_ids"],
                completion=Completion([rng.randrange(250) for _ in range(length)], "", "stop"),
                rewards={"reward": advantage},
                advantage=advantage,
                trained=rng.random() > 0.2,
                old_log_probs=torch.tensor(old),
            )
        )
    return rollouts


def loss_by_the_formula(model, rows: list[Rollout], loss_type: str, aggregation: str):
    """One row at a time, without padding, micro-batches or processes."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        if not row.trained:
            continue
        ids = torch.tensor([row.prompt_ids + row.completion.token_ids])
        logits_TV = model(ids[:, :-1]).logits[0] / TEMPERATURE
        log_probs_T = log_softmax(logits_TV, dim=-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        log_probs_T = log_probs_T[len(row.prompt_ids) - 1 :]
        ratio_T = (log_probs_T - row.old_log_probs).exp()
        a = row.advantage
        loss_T = {
            "no_baseline": -a * log_probs_T,
            "reinforce_with_baseline": -a * log_probs_T,
            "grpo_no_clip": -a * ratio_T,
            "grpo_clip": -torch.minimum(
                a * ratio_T, a * ratio_T.clamp(1 - CLIPRANGE, 1 + CLIPRANGE)
            ),
        }[loss_type]
        total = (
            total
            + {
                "masked_mean": loss_T.mean() / len(rows),
                "masked_normalize": loss_T.sum() / CONSTANT / len(rows),
                "token_mean": loss_T.sum() / sum(r.length for r in rows if r.trained),
            }[aggregation]
        )
    return total


def flat_gradient(model) -> torch.Tensor:
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients)


@pytest.mark.parametrize(("loss_type", "aggregation"), list(product(LOSS_TYPES, AGGREGATIONS)))
def test_the_gradient_is_that_of_the_formula(tokenizer, tmp_path, loss_type, aggregation):
    rng = random.Random(f"{loss_type} {aggregation}")
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        model=make_tiny_model(tokenizer).double(),
        loss_type=loss_type,
        use_std_normalization=False,
        aggregation=aggregation,
        normalize_constant=CONSTANT if aggregation == "masked_normalize" else None,
        cliprange=CLIPRANGE,
        temperature=TEMPERATURE,
    )
    model = trainer.model.train()
    for number in (1, 3, 8, 13):
        rows = random_rollouts(tokenizer, rng, number)
        rows[0].trained = True  # token_mean of no tokens at all is another matter
        model.zero_grad()
        expected_loss = loss_by_the_formula(model, rows, loss_type, aggregation)
        expected_loss.backward()
        expected = flat_gradient(model)

        processes = rng.choice([1, 2, 3, 5])
        trainer.policy.rows_per_microbatch = rng.choice([1, 2, 4, 16])
        trainer.args.max_tokens_per_microbatch = rng.choice([None, 10, 60, 200])
        trainer.args.skip_zero_advantages = rng.random() > 0.3
        trainer.args.pack_rows = rng.random() > 0.5
        trainer.args.share_prefixes = rng.random() > 0.5
        rng.shuffle(rows)
        losses, gradients, counts = [], [], set()
        for rank in range(processes):
            trainer.policy.rank, trainer.policy.processes = rank, processes
            model.zero_grad()
            micro_batches = trainer.cut(rows)
            counts.add(len(micro_batches))
            losses.append(trainer.forward_and_backward(model, micro_batches))
            gradients.append(flat_gradient(model))
        assert len(counts) == 1  # collective calls meet
        loss, gradient = sum(losses) / processes, sum(gradients) / processes
        assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


def test_a_train_batch_without_any_advantage_has_a_gradient_of_zeros(tokenizer, tmp_path):
    """Not none at all: the optimizer takes its step, as it would had the rows been run."""
    trainer = make_trainer(tokenizer, tmp_path)
    rows = random_rollouts(tokenizer, random.Random(0), 4)
    for row in rows:
        row.advantage = 0.0
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer._rollout_batch = RolloutBatch(rows, 4)
    trainer.collect_rollouts = lambda inputs: trainer._rollout_batch
    assert trainer.training_step(trainer.model, []).item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())
    assert trainer._metrics["train"]["skipped_rows"] == [1.0]
