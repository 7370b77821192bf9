"""A micro-batch's share of the negative log-likelihood: by eye, and the same for every cut."""

import math
from collections.abc import Iterator

import pytest
import torch

from trl_r1zero.functional import sft_microbatch_loss, sft_microbatch_train_step

LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
MASK = torch.tensor([[1, 1, 0], [0, 0, 1]])


def test_by_eye():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, metadata = sft_microbatch_loss(policy, MASK, num_sequences=2)
    # ((1 + 2) + 6) / 2 sequences
    assert loss.item() == 4.5
    assert policy.grad is None
    loss.backward()
    # each response token: -1 / 2
    assert torch.equal(policy.grad, -0.5 * MASK)
    assert metadata["num_response_tokens"].item() == 3
    assert not metadata["num_response_tokens"].requires_grad


def test_a_long_response_weighs_more_by_its_tokens():
    """Sums over tokens, not means: nothing but the constant divides them."""
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = sft_microbatch_loss(policy, MASK, num_sequences=2, normalize_constant=10.0)
    # ((1 + 2) / 10 + 6 / 10) / 2
    assert loss.item() == pytest.approx(0.45)
    loss.backward()
    torch.testing.assert_close(policy.grad, -0.05 * MASK)


def test_the_train_batch_may_be_larger_than_the_micro_batch():
    # 2 of 6 rows: ((1 + 2) + 6) / 6
    loss, _ = sft_microbatch_loss(LOG_PROBS, MASK, num_sequences=6)
    assert loss.item() == 1.5
    # 5 rows on 2 processes are 2.5 for each: 9 / 2.5
    loss, _ = sft_microbatch_loss(LOG_PROBS, MASK, num_sequences=2.5)
    assert loss.item() == pytest.approx(3.6)


def test_a_row_without_response_tokens_adds_nothing():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    policy = LOG_PROBS.clone().requires_grad_()
    loss, metadata = sft_microbatch_loss(policy, mask, num_sequences=2)
    loss.backward()
    assert loss.item() == 1.5
    assert torch.equal(policy.grad, -0.5 * mask)
    assert metadata["num_response_tokens"].item() == 2


def test_a_micro_batch_without_response_tokens_is_zero_with_a_graph():
    policy = LOG_PROBS.clone().requires_grad_()
    loss, _ = sft_microbatch_loss(policy, torch.zeros_like(MASK), num_sequences=2)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(policy.grad, torch.zeros_like(LOG_PROBS))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask_changes_neither_loss_nor_gradient(garbage):
    policy = torch.where(MASK.bool(), LOG_PROBS, garbage).requires_grad_()
    loss, _ = sft_microbatch_loss(policy, MASK, num_sequences=2)
    loss.backward()
    assert loss.item() == 4.5
    assert torch.equal(policy.grad, -0.5 * MASK)


@pytest.mark.parametrize("constant", [1.0, 25.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_what_the_train_step_takes_backward(steps, constant):
    ours, others = (LOG_PROBS.clone().requires_grad_() for _ in range(2))
    loss, metadata = sft_microbatch_loss(
        ours, MASK, num_sequences=2 * steps, normalize_constant=constant
    )
    loss.backward()
    step_loss, step_metadata = sft_microbatch_train_step(others, MASK, steps, constant)
    assert loss.requires_grad
    assert torch.equal(loss.detach(), step_loss)
    assert torch.equal(ours.grad, others.grad)
    assert metadata.keys() == step_metadata.keys()
    assert torch.equal(metadata["num_response_tokens"], step_metadata["num_response_tokens"])


# Any cut of a train batch

ROWS, LENGTH, CONSTANT = 6, 9, 3.0


def cuts(num_rows: int) -> Iterator[list[int]]:
    """All ways to cut rows into pieces that follow one another, the whole first."""
    for choice in range(2 ** (num_rows - 1)):
        pieces = [1]
        for row in range(num_rows - 1):
            if choice >> row & 1:
                pieces.append(1)
            else:
                pieces[-1] += 1
        yield pieces


@pytest.fixture(scope="module")
def train_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities in float64 and a mask: responses of 0 to 7 tokens behind prompts."""
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(ROWS, LENGTH, dtype=torch.float64, generator=generator) * 9
    lengths = torch.tensor([4, 1, 7, 0, 5, 2])
    positions = torch.arange(LENGTH)
    return log_probs, (positions >= 2) & (positions < 2 + lengths[:, None])


def loss_and_gradient(log_probs, mask, pieces, num_sequences):
    """Of a train batch in these pieces, each no wider than its own longest row."""
    policy = log_probs.clone().requires_grad_()
    total = 0.0
    for rows, row_mask in zip(policy.split(pieces), mask.split(pieces), strict=True):
        width = int(row_mask.any(dim=0).nonzero().max()) + 1 if row_mask.any() else 1
        loss, _ = sft_microbatch_loss(
            rows[:, :width],
            row_mask[:, :width],
            num_sequences=num_sequences,
            normalize_constant=CONSTANT,
        )
        loss.backward()
        total += loss.item()
    return total, policy.grad


def test_there_are_32_cuts():
    assert len({tuple(pieces) for pieces in cuts(ROWS)}) == 32
    assert all(sum(pieces) == ROWS for pieces in cuts(ROWS))
    assert [3, 3] in cuts(ROWS)


@pytest.mark.parametrize("pieces", list(cuts(ROWS)), ids=str)
def test_losses_and_gradients_of_any_cut_add_up_to_the_whole(train_batch, pieces):
    log_probs, mask = train_batch
    loss, gradient = loss_and_gradient(log_probs, mask, pieces, ROWS)
    whole = -(log_probs * mask).sum().item() / CONSTANT / ROWS
    assert loss == pytest.approx(whole, rel=0, abs=1e-12)
    expected = -mask.double() / CONSTANT / ROWS
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_mean_over_processes_is_the_whole(train_batch, processes):
    """With the mean number of rows as the denominator, also where shares are unequal."""
    log_probs, mask = train_batch
    whole, whole_gradient = loss_and_gradient(log_probs, mask, [ROWS], ROWS)
    mean_loss, mean_gradient = 0.0, torch.zeros_like(log_probs)
    for rank in range(processes):
        rows = slice(rank, None, processes)
        share = len(log_probs[rows])
        loss, gradient = loss_and_gradient(
            log_probs[rows], mask[rows], [1] * share, ROWS / processes
        )
        mean_loss += loss / processes
        mean_gradient[rows] += gradient / processes
    assert mean_loss == pytest.approx(whole, rel=0, abs=1e-12)
    torch.testing.assert_close(mean_gradient, whole_gradient, rtol=0, atol=1e-12)


# Errors


@pytest.mark.parametrize("num_sequences", [0, -1, math.nan])
def test_num_sequences_must_be_above_0(num_sequences):
    with pytest.raises(ValueError, match="num_sequences"):
        sft_microbatch_loss(LOG_PROBS, MASK, num_sequences=num_sequences)


@pytest.mark.parametrize("constant", [0.0, -1.0, math.nan])
def test_normalize_constant_must_be_above_0(constant):
    with pytest.raises(ValueError, match="normalize_constant"):
        sft_microbatch_loss(LOG_PROBS, MASK, num_sequences=2, normalize_constant=constant)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3,)])
def test_a_mask_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        sft_microbatch_loss(LOG_PROBS, torch.ones(shape), num_sequences=2)


def test_num_sequences_has_to_be_given():
    with pytest.raises(TypeError, match="num_sequences"):
        sft_microbatch_loss(LOG_PROBS, MASK)
