"""The sampling config, cutting at stop strings, and random streams."""

import pytest

from trl_r1zero.generation import SamplingConfig, cut_after_stop, row_seeds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\]"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens must be between 0 and max_tokens"),
        ({"stop": "</answer>"}, "stop must be a tuple"),
        ({"stop": ("",)}, "stop must be a tuple of non-empty strings"),
    ],
)
def test_values_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_cut_after_stop_keeps_the_first_stop_string():
    assert cut_after_stop("a STOP b STOP", ("STOP",)) == "a STOP"
    assert cut_after_stop("a END b STOP", ("STOP", "END")) == "a END"
    assert cut_after_stop("nothing here", ("STOP",)) is None
    assert cut_after_stop("anything", ()) is None


def test_cut_after_stop_ignores_what_ends_within_start():
    text = "STOP x STOP"
    assert cut_after_stop(text, ("STOP",), start=3) == "STOP"  # ends at 4, behind 3
    assert cut_after_stop(text, ("STOP",), start=4) == "STOP x STOP"


def test_row_seeds_differ_by_row_step_stream_and_seed():
    base = row_seeds(0, "rollout", 0, range(64))
    assert len(set(base)) == 64
    for other in (
        row_seeds(1, "rollout", 0, range(64)),
        row_seeds(0, "eval", 0, range(64)),
        row_seeds(0, "rollout", 1, range(64)),
    ):
        assert not set(base) & set(other)
    # A row's seed is its own: it does not depend on which rows are asked for.
    assert row_seeds(0, "rollout", 0, [5, 63]) == [base[5], base[63]]
