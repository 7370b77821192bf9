"""Masked sums and means, by hand, and the guarantee that masked garbage stays out."""

import pytest
import torch

from trl_r1zero.functional import masked_mean, masked_normalize, zero_unselected

# 1 2 .      what the mask leaves
# 4 . 2
TENSOR = torch.tensor([[1.0, 2.0, 7.0], [4.0, 9.0, 2.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 1]])


def test_masked_normalize_dim0():
    # (1+4)/2, 2/2, 2/2
    torch.testing.assert_close(
        masked_normalize(TENSOR, MASK, 2.0, dim=0), torch.tensor([2.5, 1.0, 1.0])
    )


@pytest.mark.parametrize("dim", [1, -1])
def test_masked_normalize_dim1(dim):
    # (1+2)/2, (4+2)/2
    torch.testing.assert_close(
        masked_normalize(TENSOR, MASK, 2.0, dim=dim), torch.tensor([1.5, 3.0])
    )


def test_masked_normalize_dimNone():
    # (1+2+4+2)/2
    torch.testing.assert_close(masked_normalize(TENSOR, MASK, 2.0), torch.tensor(4.5))


def test_masked_normalize_of_nothing_is_zero():
    assert masked_normalize(TENSOR, torch.zeros_like(MASK), 3.0).item() == 0.0


def test_masked_normalize_rejects_zero_constant():
    with pytest.raises(ValueError, match="normalize_constant must not be 0"):
        masked_normalize(TENSOR, MASK, 0)


def test_masked_mean_dim0():
    # (1+4)/2, 2/1, 2/1
    torch.testing.assert_close(masked_mean(TENSOR, MASK, dim=0), torch.tensor([2.5, 2.0, 2.0]))


@pytest.mark.parametrize("dim", [1, -1])
def test_masked_mean_dim1(dim):
    # (1+2)/2, (4+2)/2
    torch.testing.assert_close(masked_mean(TENSOR, MASK, dim=dim), torch.tensor([1.5, 3.0]))


def test_masked_mean_dimNone():
    # (1+2+4+2)/4
    torch.testing.assert_close(masked_mean(TENSOR, MASK), torch.tensor(2.25))


def test_masked_mean_of_nothing_is_nan_only_there():
    mask = torch.tensor([[0, 0, 0], [1, 0, 1]])
    means = masked_mean(TENSOR, mask, dim=1)
    assert means[0].isnan()
    assert means[1].item() == 3.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_masks_of_any_dtype_select_the_same(dtype):
    assert masked_mean(TENSOR, MASK.to(dtype)).item() == 2.25
    assert masked_normalize(TENSOR, MASK.to(dtype), 2.0).item() == 4.5


@pytest.mark.parametrize("function", [masked_mean, lambda x, m: masked_normalize(x, m, 2.0)])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_garbage_under_the_mask_reaches_neither_value_nor_gradient(function, garbage):
    clean = TENSOR.clone().requires_grad_()
    dirty = torch.where(MASK.bool(), TENSOR, garbage).requires_grad_()
    values = [function(tensor, MASK) for tensor in (clean, dirty)]
    for value in values:
        value.backward()
    assert torch.equal(values[0], values[1])
    assert torch.equal(clean.grad, dirty.grad)
    assert torch.equal(dirty.grad == 0, MASK == 0)


def test_zero_unselected_before_exp_keeps_inf_out_of_the_gradient():
    x = torch.tensor([[0.0, 1e30]], requires_grad=True)
    mask = torch.tensor([[1, 0]])
    zero_unselected(x, mask).exp().sum().backward()
    # d exp(x) at 0 is 1; the masked element has none.
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_a_mask_of_another_shape_is_an_error_not_a_broadcast():
    with pytest.raises(ValueError, match=r"mask has shape \(3,\).*tensor has shape \(2, 3\)"):
        masked_mean(TENSOR, torch.ones(3))
