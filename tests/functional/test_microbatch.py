"""Micro-batch steps: losses and gradients by hand, and independence of the cut on a real model."""

import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_r1zero.functional import (
    AGGREGATIONS,
    LOSS_TYPES,
    aggregate_loss,
    compute_policy_gradient_loss,
    get_response_log_probs,
    grpo_microbatch_loss,
    grpo_microbatch_train_step,
    sft_microbatch_train_step,
)

LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
MASK = torch.tensor([[1, 1, 0], [0, 0, 1]])


def test_sft_microbatch_train_step():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, metadata = sft_microbatch_train_step(policy, MASK, gradient_accumulation_steps=2)
    # ((1 + 2) + 6) / 2 sequences / 2 steps
    assert loss.item() == 9 / 4
    # each response token: -1 / 2 / 2
    assert torch.equal(policy.grad, -0.25 * MASK)
    assert metadata["num_response_tokens"].item() == 3


def test_sft_microbatch_train_step_normalize():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = sft_microbatch_train_step(policy, MASK, 2, normalize_constant=10.0)
    assert loss.item() == pytest.approx(9 / 40)
    torch.testing.assert_close(policy.grad, -0.025 * MASK)


def test_sft_microbatch_train_step_10_steps():
    policy = LOG_PROBS.clone().requires_grad_()
    for _ in range(10):
        loss, _ = sft_microbatch_train_step(policy, MASK, 10)
    # Ten times the same micro-batch: the gradient of one with a single step, -1 / 2.
    assert loss.item() == pytest.approx(9 / 20)
    torch.testing.assert_close(policy.grad, -0.5 * MASK)


# Old probabilities 1/2; ratios 0.5, 1.5 in row 1 (token 3 is masked) and 0.5 at token 3 of row 2.
OLD = torch.full((2, 3), math.log(0.5))
POLICY = OLD + torch.tensor([[0.5, 1.5, 9.0], [9.0, 9.0, 0.5]]).log()
ARGUMENTS = {
    "raw_rewards": torch.tensor([[1.0], [0.5]]),
    "advantages": torch.tensor([[2.0], [-1.0]]),
    "old_log_probs": OLD,
    "cliprange": 0.2,
}


def test_grpo_microbatch_train_step_grpo_clip():
    policy = POLICY.clone().requires_grad_()
    loss, metadata = grpo_microbatch_train_step(policy, MASK, 2, "grpo_clip", **ARGUMENTS)
    # Row 1, A = 2: -min(1, 1.6) = -1; -min(3, 2.4) = -2.4, clipped; mean -1.7.
    # Row 2, A = -1: -min(-0.5, -0.8) = 0.8, clipped.   (-1.7 + 0.8) / 2 / 2
    assert loss.item() == pytest.approx(-0.225)
    # d(-ratio A)/d log p = -ratio A = -1 at the one unclipped token, over 2 tokens * 2 rows * 2.
    torch.testing.assert_close(policy.grad, torch.tensor([[-0.125, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert metadata["clipped"].tolist() == [[False, True, False], [False, False, True]]


def test_grpo_microbatch_train_step_grpo_no_clip():
    policy = POLICY.clone().requires_grad_()
    loss, _ = grpo_microbatch_train_step(policy, MASK, 2, "grpo_no_clip", **ARGUMENTS)
    # Row 1: -(1 + 3) / 2 = -2. Row 2: 0.5.   (-2 + 0.5) / 4
    assert loss.item() == pytest.approx(-0.375)
    # -ratio A / (tokens of the row * 4): -1/8, -3/8; 0.5/4
    torch.testing.assert_close(
        policy.grad, torch.tensor([[-0.125, -0.375, 0.0], [0.0, 0.0, 0.125]])
    )


def test_grpo_microbatch_train_step_reinforce_with_baseline():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = grpo_microbatch_train_step(policy, MASK, 2, "reinforce_with_baseline", **ARGUMENTS)
    # Row 1: 2 * (1 + 2) / 2 = 3. Row 2: -1 * 6 = -6.   (3 - 6) / 4
    assert loss.item() == -0.75
    # -A / (tokens of the row * 4): -2/8; 1/4
    assert policy.grad.tolist() == [[-0.25, -0.25, 0.0], [0.0, 0.0, 0.25]]


def test_grpo_microbatch_train_step_no_baseline():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = grpo_microbatch_train_step(policy, MASK, 2, "no_baseline", **ARGUMENTS)
    # Row 1: 1 * (1 + 2) / 2 = 1.5. Row 2: 0.5 * 6 = 3.   4.5 / 4
    assert loss.item() == 1.125
    assert policy.grad.tolist() == [[-0.125, -0.125, 0.0], [0.0, 0.0, -0.125]]


def test_grpo_microbatch_train_step_grpo_clip_10_steps():
    policy = POLICY.clone().requires_grad_()
    for _ in range(10):
        loss, _ = grpo_microbatch_train_step(policy, MASK, 10, "grpo_clip", **ARGUMENTS)
    assert loss.item() == pytest.approx(-0.45 / 10)
    # As in one step without accumulation: -1 / 2 tokens / 2 rows.
    torch.testing.assert_close(policy.grad, torch.tensor([[-0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_grpo_microbatch_train_step_masked_normalize():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = grpo_microbatch_train_step(
        policy,
        MASK,
        2,
        "reinforce_with_baseline",
        advantages=ARGUMENTS["advantages"],
        aggregation="masked_normalize",
        normalize_constant=3.0,
    )
    # (2 * (1 + 2) / 3 - 1 * 6 / 3) / 4 = 0, and every token weighs -A / 12.
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(
        policy.grad, torch.tensor([[-1 / 6, -1 / 6, 0.0], [0.0, 0.0, 1 / 12]])
    )


def weighed_loss(sampler_weights, **settings):
    """The loss of a train batch of two rows, and the policy with its gradient."""
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = grpo_microbatch_loss(
        policy,
        MASK,
        "reinforce_with_baseline",
        advantages=ARGUMENTS["advantages"],
        sampler_weights=sampler_weights,
        num_sequences=2,
        **settings,
    )
    loss.backward()
    return loss.item(), policy.grad


def test_sampler_weights_multiply_each_token():
    loss, gradient = weighed_loss(torch.tensor([[0.5, 2.0, 9.0], [9.0, 9.0, 3.0]]))
    # Row 1, A = 2: (0.5 * 2 + 2 * 4) / 2 = 4.5. Row 2, A = -1: 3 * -6 = -18.   (4.5 - 18) / 2
    assert loss == -6.75
    # -w A / (tokens of the row * 2)
    assert gradient.tolist() == [[-0.25, -1.0, 0.0], [0.0, 0.0, 1.5]]


def test_sampler_weights_of_whole_responses():
    loss, gradient = weighed_loss(torch.tensor([[0.5], [0.0]]))
    # Row 1: 0.5 * (2 + 4) / 2 = 1.5. Row 2 weighs nothing, and counts as one of two rows.
    assert loss == 0.75
    assert gradient.tolist() == [[-0.25, -0.25, 0.0], [0.0, 0.0, 0.0]]


def test_sampler_weights_do_not_weigh_the_kl_penalty():
    # The reference is the policy plus ln 2 per token: k3 is 2 - ln 2 - 1, times beta 0.1.
    settings = {"ref_log_probs": LOG_PROBS + math.log(2.0), "beta": 0.1}
    loss, _ = weighed_loss(torch.tensor([[0.5], [0.0]]), **settings)
    assert loss == pytest.approx(0.75 + 0.1 * (1 - math.log(2.0)))


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_sampler_weights_under_the_mask_change_nothing(garbage):
    weights = torch.tensor([[0.5, 2.0, garbage], [garbage, garbage, 3.0]])
    loss, gradient = weighed_loss(weights)
    assert loss == -6.75
    assert gradient.tolist() == [[-0.25, -1.0, 0.0], [0.0, 0.0, 1.5]]


def test_sampler_weights_are_not_differentiated():
    policy = LOG_PROBS.clone().requires_grad_()
    weights = policy.exp()
    loss, _ = grpo_microbatch_loss(
        policy, MASK, "no_baseline", **ARGUMENTS, sampler_weights=weights, num_sequences=2
    )
    loss.backward()
    # -w r / (tokens of the row * 2); through the weights there would be more.
    expected = -LOG_PROBS.exp() * torch.tensor([[0.25], [0.25]]) * MASK
    torch.testing.assert_close(policy.grad, expected)


@pytest.mark.parametrize("loss_type", list(LOSS_TYPES))
def test_sampler_weights_reweigh_every_loss_type(loss_type):
    gradients = []
    for weights in (None, torch.ones(2, 1), torch.full((2, 3), 3.0)):
        policy = POLICY.clone().requires_grad_()
        loss, _ = grpo_microbatch_loss(
            policy, MASK, loss_type, **ARGUMENTS, sampler_weights=weights, num_sequences=2
        )
        loss.backward()
        gradients.append(policy.grad)
    assert gradients[0].any()
    assert torch.equal(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], 3 * gradients[0])


@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 2), (1, 1)])
def test_sampler_weights_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"sampler_weights must have .* \(2, 3\) or .* \(2, 1\)"):
        weighed_loss(torch.ones(shape))


def test_results_carry_no_graph():
    for loss, metadata in (
        sft_microbatch_train_step(POLICY.clone().requires_grad_(), MASK, 1),
        grpo_microbatch_train_step(
            POLICY.clone().requires_grad_(), MASK, 1, "grpo_clip", **ARGUMENTS
        ),
    ):
        assert not loss.requires_grad
        assert metadata
        assert not any(value.requires_grad for value in metadata.values())


def aggregation_arguments(aggregation: str, num_tokens: int) -> dict[str, float]:
    return {
        "masked_mean": {},
        "masked_normalize": {"normalize_constant": 11.0},
        "token_mean": {"num_tokens": num_tokens},
        "constant": {"normalize_constant": 88.0},
    }[aggregation]


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("loss_type", list(LOSS_TYPES))
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask_changes_neither_loss_nor_gradient(loss_type, aggregation, garbage):
    clean = POLICY.clone().requires_grad_()
    dirty = torch.where(MASK.bool(), POLICY, garbage).requires_grad_()
    dirty_old = torch.where(MASK.bool(), OLD, -garbage)
    extra = aggregation_arguments(aggregation, num_tokens=3)
    loss, _ = grpo_microbatch_train_step(
        clean, MASK, 2, loss_type, **ARGUMENTS, aggregation=aggregation, **extra
    )
    dirty_loss, _ = grpo_microbatch_train_step(
        dirty,
        MASK,
        2,
        loss_type,
        **{**ARGUMENTS, "old_log_probs": dirty_old},
        aggregation=aggregation,
        **extra,
    )
    assert loss.isfinite()
    assert torch.equal(loss, dirty_loss)
    assert torch.equal(clean.grad, dirty.grad)
    assert clean.grad[MASK.bool()].any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_sft_garbage_under_the_mask(garbage):
    policy = torch.where(MASK.bool(), LOG_PROBS, garbage).requires_grad_()
    loss, _ = sft_microbatch_train_step(policy, MASK, 2)
    assert loss.item() == 9 / 4
    assert torch.equal(policy.grad, -0.25 * MASK)


@pytest.fixture(scope="module")
def tiny_qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def train_batch(tiny_qwen2) -> dict[str, torch.Tensor]:
    """Eight sequences with responses of 0 to 7 tokens, and an old policy a little way off."""
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(31, (8, 11), generator=generator)
    input_ids, labels = token_ids[:, :-1], token_ids[:, 1:]
    lengths = torch.tensor([4, 1, 7, 2, 0, 6, 3, 5])
    positions = torch.arange(10)
    response_mask = (positions >= 2) & (positions < 2 + lengths[:, None])
    with torch.no_grad():
        log_probs = get_response_log_probs(tiny_qwen2, input_ids, labels)["log_probs"]
    noise = 0.3 * torch.randn(8, 10, generator=generator)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "response_mask": response_mask,
        "old_log_probs": log_probs + noise,
        "raw_rewards": torch.rand(8, 1, generator=generator),
        "advantages": torch.randn(8, 1, generator=generator),
    }


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


GRPO_ARGUMENTS = ("raw_rewards", "advantages", "old_log_probs")


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("loss_type", list(LOSS_TYPES))
def test_grpo_gradient_does_not_depend_on_the_cut(tiny_qwen2, train_batch, loss_type, aggregation):
    num_tokens = int(train_batch["response_mask"].sum())
    extra = aggregation_arguments(aggregation, num_tokens)
    losses, gradients = {}, {}
    for micro_batch_size in (8, 4, 2, 1):
        steps = 8 // micro_batch_size
        tiny_qwen2.zero_grad()
        total = 0.0
        for start in range(0, 8, micro_batch_size):
            rows = {
                name: value[start : start + micro_batch_size] for name, value in train_batch.items()
            }
            # Each micro-batch is no wider than its own longest sequence.
            width = 2 + int(rows["response_mask"].sum(dim=1).max())
            for name in ("input_ids", "labels", "response_mask", "old_log_probs"):
                rows[name] = rows[name][:, :width]
            log_probs = get_response_log_probs(tiny_qwen2, rows["input_ids"], rows["labels"])
            loss, _ = grpo_microbatch_train_step(
                log_probs["log_probs"],
                rows["response_mask"],
                steps,
                loss_type,
                **{name: rows[name] for name in GRPO_ARGUMENTS},
                cliprange=0.2,
                aggregation=aggregation,
                **extra,
            )
            total += loss.item()
        losses[micro_batch_size] = total
        gradients[micro_batch_size] = flat_gradient(tiny_qwen2).clone()
    assert gradients[8].norm() > 1e-2
    for micro_batch_size in (4, 2, 1):
        assert losses[micro_batch_size] == pytest.approx(losses[8], abs=1e-6)
        relative = (gradients[micro_batch_size] - gradients[8]).norm() / gradients[8].norm()
        assert relative < 1e-6


def test_sft_gradient_does_not_depend_on_the_cut(tiny_qwen2, train_batch):
    gradients = {}
    for micro_batch_size in (8, 2, 1):
        tiny_qwen2.zero_grad()
        for start in range(0, 8, micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            log_probs = get_response_log_probs(
                tiny_qwen2, train_batch["input_ids"][rows], train_batch["labels"][rows]
            )
            sft_microbatch_train_step(
                log_probs["log_probs"], train_batch["response_mask"][rows], 8 // micro_batch_size
            )
        gradients[micro_batch_size] = flat_gradient(tiny_qwen2).clone()
    for micro_batch_size in (2, 1):
        difference = (gradients[micro_batch_size] - gradients[8]).norm()
        assert difference / gradients[8].norm() < 1e-6


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_unequal_pieces_by_aggregate_loss_give_the_same_gradient(
    tiny_qwen2, train_batch, aggregation
):
    # 3 + 5 rows, as two ranks or a remainder would have: the denominators are the whole batch's.
    num_tokens = int(train_batch["response_mask"].sum())
    denominators = {"num_sequences": 8, "num_tokens": num_tokens}
    if aggregation in ("masked_normalize", "constant"):
        denominators["normalize_constant"] = 11.0
    gradients = []
    for cut in ([8], [3, 5]):
        tiny_qwen2.zero_grad()
        pieces = zip(*(train_batch[name].split(cut) for name in train_batch), strict=True)
        for values in pieces:
            rows = dict(zip(train_batch, values, strict=True))
            log_probs = get_response_log_probs(tiny_qwen2, rows["input_ids"], rows["labels"])
            per_token_loss, _ = compute_policy_gradient_loss(
                log_probs["log_probs"],
                "grpo_clip",
                advantages=rows["advantages"],
                old_log_probs=rows["old_log_probs"],
                cliprange=0.2,
            )
            aggregate_loss(
                per_token_loss, rows["response_mask"], aggregation, **denominators
            ).backward()
        gradients.append(flat_gradient(tiny_qwen2).clone())
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 1e-6


def test_one_step_along_the_gradient_raises_the_good_and_lowers_the_bad(tiny_qwen2, train_batch):
    parameters = list(tiny_qwen2.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    mask = train_batch["response_mask"]

    def sequence_log_probs():
        log_probs = get_response_log_probs(
            tiny_qwen2, train_batch["input_ids"], train_batch["labels"]
        )["log_probs"]
        return log_probs, (log_probs.detach() * mask).sum(dim=1)

    for sign in (1.0, -1.0):
        tiny_qwen2.zero_grad()
        log_probs, start = sequence_log_probs()
        grpo_microbatch_train_step(
            log_probs, mask, 1, "reinforce_with_baseline", advantages=sign * torch.ones(8, 1)
        )
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(parameter.grad, alpha=1e-3)
            change = sequence_log_probs()[1] - start
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
        assert sign * change.sum() > 0


@pytest.mark.parametrize("steps", [0, -1])
def test_gradient_accumulation_steps_below_one_is_an_error(steps):
    policy = POLICY.clone().requires_grad_()
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be at least 1"):
        sft_microbatch_train_step(policy, MASK, steps)
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be at least 1"):
        grpo_microbatch_train_step(policy, MASK, steps, "grpo_clip", **ARGUMENTS)
    assert policy.grad is None


def test_token_mean_needs_the_tokens_of_the_whole_batch():
    policy = POLICY.clone().requires_grad_()
    with pytest.raises(ValueError, match="needs num_tokens"):
        grpo_microbatch_train_step(
            policy, MASK, 2, "grpo_clip", **ARGUMENTS, aggregation="token_mean"
        )


def test_an_all_masked_micro_batch_is_zero_not_nan():
    policy = POLICY.clone().requires_grad_()
    loss, _ = grpo_microbatch_train_step(
        policy, torch.zeros_like(MASK), 2, "grpo_clip", **ARGUMENTS
    )
    assert loss.item() == 0.0
    assert torch.equal(policy.grad, torch.zeros_like(POLICY))
