"""DAPO's soft ramp by hand, and against TRL's."""

import pytest
import torch
from trl.rewards import get_soft_overlong_punishment

from trl_r1zero.functional import soft_overlong_penalty


def test_the_ramp_by_hand():
    """L = 10, b = 4: free up to 6 tokens, then a quarter for each, and never less than -1."""
    lengths = torch.tensor([0, 5, 6, 7, 8, 9, 10, 11, 50])
    penalties = soft_overlong_penalty(lengths, 10, 4)
    assert penalties.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]
    assert penalties.dtype == torch.float64


@pytest.mark.parametrize(("max_length", "buffer"), [(10, 3), (64, 64), (7, 1), (1024, 100)])
def test_it_is_that_of_trl(max_length, buffer):
    lengths = list(range(max_length + 3))
    theirs = get_soft_overlong_punishment(max_length, buffer)([[0] * n for n in lengths])
    assert soft_overlong_penalty(torch.tensor(lengths), max_length, buffer).tolist() == theirs


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_a_buffer_outside_of_the_length_is_an_error(buffer):
    with pytest.raises(ValueError, match="from 1 to max_length"):
        soft_overlong_penalty(torch.tensor([1]), 10, buffer)
