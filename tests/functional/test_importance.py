"""Weights of a sampler that is not quite the trainer: each mode by hand, its bounds, its edges."""

import math

import pytest
import torch

from trl_r1zero.functional import SAMPLER_CORRECTIONS, compute_sampler_importance_weights

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
# The sampler gave every token the probability 0.1. The trainer gives it so many times that; the
# third token of row 1 is no response token.
RATIO = torch.tensor([[2.0, 0.5, 7.0], [4.0, 3.0, 0.25]])
SAMPLER = torch.full((2, 3), math.log(0.1))
OLD = SAMPLER + RATIO.log()


def weights(mode: str, clip_min=0.4, clip_max=2.5, *, old=OLD, sampler=SAMPLER, mask=MASK):
    return compute_sampler_importance_weights(old, sampler, mask, mode, clip_min, clip_max)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Below 0.4: 0.25. Above 2.5: 4 and 3. No response token: 1.
        ("token_truncate", [[2.0, 0.5, 1.0], [2.5, 2.5, 0.4]]),
        ("token_mask", [[2.0, 0.5, 1.0], [0.0, 0.0, 0.0]]),
        # 2 * 0.5 = 1 and 4 * 3 * 0.25 = 3
        ("sequence_truncate", [[1.0], [2.5]]),
        ("sequence_mask", [[1.0], [0.0]]),
    ],
)
def test_each_mode(mode, expected):
    torch.testing.assert_close(weights(mode), torch.tensor(expected))


def test_the_modes_are_those_of_the_test_above():
    assert list(SAMPLER_CORRECTIONS) == [
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ]


def test_one_bound_is_enough():
    expected = torch.tensor([[2.0, 0.5, 1.0], [2.5, 2.5, 0.25]])
    torch.testing.assert_close(weights("token_truncate", None, 2.5), expected)
    expected = torch.tensor([[2.0, 0.5, 1.0], [4.0, 3.0, 0.4]])
    torch.testing.assert_close(weights("token_truncate", 0.4, None), expected)
    expected = torch.tensor([[2.0, 0.5, 1.0], [0.0, 0.0, 0.25]])
    torch.testing.assert_close(weights("token_mask", None, 2.5), expected)
    torch.testing.assert_close(weights("sequence_mask", 2.0, None), torch.tensor([[0.0], [3.0]]))


def test_masking_without_bounds_leaves_the_ratios():
    expected = torch.where(MASK.bool(), RATIO, 1.0)
    torch.testing.assert_close(weights("token_mask", None, None), expected)


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_a_sampler_that_is_the_trainer_has_weights_of_exactly_1(mode):
    # The bounds themselves are within the bounds.
    for clip_min, clip_max in ((None, 1.0), (1.0, None), (0.5, 3.0)):
        assert (weights(mode, clip_min, clip_max, old=SAMPLER) == 1).all()


def test_a_token_that_the_sampler_could_not_score_has_the_ratio_1():
    sampler = SAMPLER.clone()
    sampler[1, 0] = math.nan
    expected = torch.tensor([[2.0, 0.5, 1.0], [1.0, 2.5, 0.4]])
    torch.testing.assert_close(weights("token_truncate", sampler=sampler), expected)
    # 1 * 3 * 0.25 = 0.75
    expected = torch.tensor([[1.0], [0.75]])
    torch.testing.assert_close(weights("sequence_mask", sampler=sampler), expected)


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_a_token_that_the_sampler_called_impossible_is_out_of_bounds(mode):
    sampler = SAMPLER.clone()
    sampler[0, 0] = -math.inf
    expected = 0.0 if SAMPLER_CORRECTIONS[mode].masks else 2.5
    assert weights(mode, sampler=sampler)[0, 0].item() == expected


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask_changes_nothing(mode, garbage):
    old = torch.where(MASK.bool(), OLD, garbage)
    sampler = torch.where(MASK.bool(), SAMPLER, garbage)
    assert torch.equal(weights(mode, old=old), weights(mode))
    assert torch.equal(weights(mode, sampler=sampler), weights(mode))
    assert torch.equal(weights(mode, old=old, sampler=sampler), weights(mode))


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_a_row_without_response_tokens_has_the_weight_1(mode):
    result = weights(mode, mask=torch.zeros_like(MASK))
    assert result.shape == ((2, 1) if SAMPLER_CORRECTIONS[mode].per_sequence else (2, 3))
    assert (result == 1).all()


@pytest.mark.parametrize("mode", SAMPLER_CORRECTIONS)
def test_weights_carry_no_graph(mode):
    result = weights(mode, old=OLD.clone().requires_grad_(), sampler=SAMPLER.requires_grad_())
    assert not result.requires_grad


def test_half_precision_is_summed_in_float32():
    # 300 ratios of exp(1/16): the sum of the logarithms is 18.75; bfloat16 would stop at 16.
    old = torch.full((1, 300), -1.0, dtype=torch.bfloat16)
    sampler = old - 0.0625
    result = weights("sequence_mask", None, None, old=old, sampler=sampler, mask=old < 0)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(math.exp(18.75))


def test_errors():
    with pytest.raises(ValueError, match=r"unknown mode .* 'token_clip'.*token_truncate"):
        weights("token_clip")
    with pytest.raises(ValueError, match=r"clip_min \(2.0\) must be below clip_max \(2.0\)"):
        weights("token_mask", 2.0, 2.0)
    with pytest.raises(ValueError, match=r"clip_min bounds a ratio .* got -1.0"):
        weights("token_mask", -1.0, 2.0)
    with pytest.raises(ValueError, match=r"clip_max bounds a ratio .* got nan"):
        weights("token_mask", None, math.nan)
    with pytest.raises(ValueError, match="mode 'sequence_truncate' needs clip_min, clip_max or"):
        weights("sequence_truncate", None, None)
    with pytest.raises(ValueError, match=r"sampler_log_probs has shape \(2, 2\), but old_log_p"):
        weights("token_mask", sampler=SAMPLER[:, :2])
    with pytest.raises(ValueError, match="mask has shape"):
        weights("token_mask", mask=MASK[:, :2])
