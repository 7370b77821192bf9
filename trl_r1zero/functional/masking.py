"""Sums and means over the selected elements of a tensor.

Masks are bool, or 0/1 of any dtype, and have the shape of the tensor they select from (no
broadcasting: a mask of another shape is a bug far more often than a wish). Selection is by
`torch.where`, never by multiplication, because 0 * NaN is NaN: whatever stands under a 0 of the
mask reaches neither the value nor the gradient.
"""

import torch
from torch import Tensor

from ._checks import require_same_shape


def zero_unselected(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return `tensor` with exact zeros where `mask` is 0; the gradient there is exactly 0 too.

    Apply it *before* a function that can overflow (a ratio's `exp`), and not only after: the chain
    rule multiplies the zero that comes back from a later mask by the function's derivative, and
    0 * inf is NaN. A ValueError if the shapes differ.
    """
    require_same_shape(mask, "mask", tensor, "tensor")
    return torch.where(mask.to(torch.bool), tensor, torch.zeros_like(tensor))


def masked_normalize(
    tensor: Tensor, mask: Tensor, normalize_constant: float, dim: int | None = None
) -> Tensor:
    r"""Sum of the selected elements, divided by a constant: :math:`\sum_j m_j x_j / c`.

    With a constant that does not depend on the sequence, every token of a batch has the same
    weight: the length normalisation of Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, section 3.2).

    Args:
        tensor: any shape.
        mask: the shape of `tensor`; bool or 0/1.
        normalize_constant: the divisor, not 0.
        dim: the dimension to sum over; None sums over all.

    Returns:
        The shape of `tensor` without `dim`; a scalar if `dim` is None. 0 where nothing is selected.

    Raises:
        ValueError: `normalize_constant` is 0, or the shapes differ.
    """
    if normalize_constant == 0:
        raise ValueError("normalize_constant must not be 0: the masked sum is divided by it")
    return zero_unselected(tensor, mask).sum(dim=dim) / normalize_constant


def masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    r"""Mean of the selected elements: :math:`\sum_j m_j x_j / \sum_j m_j`.

    Args:
        tensor: any shape.
        mask: the shape of `tensor`; bool or 0/1.
        dim: the dimension to average over; None averages over all.

    Returns:
        The shape of `tensor` without `dim`; a scalar if `dim` is None. NaN where nothing is
        selected, as the mean of nothing is.

    Raises:
        ValueError: the shapes differ.
    """
    # Summed as a bool's int64 count: a half-precision count would stop being exact at 256 or 2048.
    return masked_normalize(tensor, mask, 1.0, dim) / mask.to(torch.bool).sum(dim=dim)
