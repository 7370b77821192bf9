"""What a response loses for its length."""

import torch
from torch import Tensor


def soft_overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    r"""DAPO's soft ramp over the last tokens that a response may have (arXiv:2503.14476, eq. 13).

    .. math:: R(y) = \begin{cases} 0 & |y| \le L - b \\ (L - b - |y|) / b & L - b < |y| \le L \\
              -1 & L < |y| \end{cases}

    Args:
        lengths: :math:`|y|`, tokens of each response, of any shape.
        max_length: L, tokens of a response at most.
        buffer: b, how many of them cost, from 1 to L.

    Returns:
        What is added to the rewards, from -1 to 0, float64, of the shape of `lengths`.

    Raises:
        ValueError: `buffer` is below 1 or above `max_length`.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer must be from 1 to max_length ({max_length}), got {buffer}")
    return ((max_length - buffer - lengths.to(torch.float64)) / buffer).clamp(-1.0, 0.0)
