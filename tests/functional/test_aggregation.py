"""Denominators of the train-batch loss, worked by hand."""

import pytest
import torch

from trl_r1zero.functional import AGGREGATIONS, aggregate_loss

# 3 5 .    row 1: sum 8, 2 tokens      row 2: sum 9, 3 tokens      row 3: no response token
# 2 3 4
# . . .
LOSS = torch.tensor([[3.0, 5.0, 9.0], [2.0, 3.0, 4.0], [6.0, 7.0, 8.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
DENOMINATORS = {
    "masked_mean": {"num_sequences": 3},
    "masked_normalize": {"num_sequences": 3, "normalize_constant": 10.0},
    "token_mean": {"num_tokens": 5},
    "constant": {"normalize_constant": 30.0},
}


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("masked_mean", (8 / 2 + 9 / 3 + 0) / 3),
        ("masked_normalize", (8 + 9) / (10 * 3)),
        ("token_mean", (8 + 9) / 5),
        ("constant", (8 + 9) / 30),
    ],
)
def test_aggregate_loss(aggregation, expected):
    loss = aggregate_loss(LOSS, MASK, aggregation, **DENOMINATORS[aggregation])
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_masked_mean_is_the_default():
    assert aggregate_loss(LOSS, MASK, num_sequences=3).item() == pytest.approx(7 / 3, rel=1e-6)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
@pytest.mark.parametrize("cuts", [[3], [1, 2], [2, 1], [1, 1, 1]])
def test_pieces_of_any_size_add_up(aggregation, cuts):
    whole = aggregate_loss(LOSS, MASK, aggregation, **DENOMINATORS[aggregation])
    pieces = [
        aggregate_loss(loss, mask, aggregation, **DENOMINATORS[aggregation])
        for loss, mask in zip(LOSS.split(cuts), MASK.split(cuts), strict=True)
    ]
    torch.testing.assert_close(torch.stack(pieces).sum(), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_more_padding_changes_nothing(aggregation):
    padding = torch.nn.functional.pad
    assert torch.equal(
        aggregate_loss(LOSS, MASK, aggregation, **DENOMINATORS[aggregation]),
        aggregate_loss(
            padding(LOSS, (0, 4), value=float("nan")),
            padding(MASK, (0, 4)),
            aggregation,
            **DENOMINATORS[aggregation],
        ),
    )


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_a_row_without_response_tokens_contributes_exactly_zero(aggregation):
    loss = LOSS.clone().requires_grad_()
    piece = aggregate_loss(loss[2:], MASK[2:], aggregation, **DENOMINATORS[aggregation])
    piece.backward()
    assert piece.item() == 0.0
    assert torch.equal(loss.grad, torch.zeros_like(loss))


def test_a_train_batch_without_response_tokens_has_token_mean_zero():
    assert aggregate_loss(LOSS, torch.zeros_like(MASK), "token_mean", num_tokens=0).item() == 0.0
    with pytest.raises(ValueError, match="num_tokens must be a finite number above 0, got 0"):
        aggregate_loss(LOSS, MASK, "token_mean", num_tokens=0)


def test_half_precision_losses_are_summed_in_float32():
    # 4096 tokens of 1 + 1/128 (exact in bfloat16); a bfloat16 total could not hold 4128.
    loss = torch.full((1, 4096), 1 + 1 / 128, dtype=torch.bfloat16)
    total = aggregate_loss(loss, torch.ones(1, 4096), "token_mean", num_tokens=1)
    assert total.dtype == torch.float32
    assert total.item() == 4128.0


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_each_missing_denominator_is_named(aggregation):
    for missing in DENOMINATORS[aggregation]:
        rest = {k: v for k, v in DENOMINATORS[aggregation].items() if k != missing}
        with pytest.raises(ValueError, match=f"needs {missing}, got None"):
            aggregate_loss(LOSS, MASK, aggregation, **rest)
        with pytest.raises(ValueError, match=f"{missing} must be a finite number above 0, got 0"):
            aggregate_loss(LOSS, MASK, aggregation, **rest, **{missing: 0})


@pytest.mark.parametrize("aggregation", ["masked_mean", "token_mean"])
def test_an_unused_normalize_constant_is_an_error(aggregation):
    with pytest.raises(ValueError, match=f"'{aggregation}' does not use normalize_constant"):
        aggregate_loss(
            LOSS, MASK, aggregation, num_sequences=3, num_tokens=5, normalize_constant=1.0
        )


def test_unknown_aggregation_and_wrong_shapes():
    with pytest.raises(
        ValueError, match=r"did you mean 'masked_mean'.* Allowed: constant, masked_mean, "
    ):
        aggregate_loss(LOSS, MASK, "mask_mean", num_sequences=3)
    with pytest.raises(ValueError, match=r"response_mask_BT has shape \(3, 2\)"):
        aggregate_loss(LOSS, MASK[:, :2], num_sequences=3)
    with pytest.raises(ValueError, match=r"must have shape \(B, T\), got \(3,\)"):
        aggregate_loss(LOSS[0], MASK[0], num_sequences=3)
