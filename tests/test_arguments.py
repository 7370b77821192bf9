"""Ranges in the types of fields."""

import dataclasses
from dataclasses import dataclass

import pytest

from trl_r1zero.common.arguments import Count, NonNegative, Positive, arg, check_ranges, default_of


@dataclass
class Settings:
    count: Count = arg(1, "How many.")
    limit: Count | None = arg(None, "At most.")
    share: NonNegative = arg(0.0, "How much.")
    seconds: Positive | None = arg(1.5, "How long.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"limit": -1}, "limit must be at least 1, got -1"),
        ({"share": -0.5}, "share must be at least 0, got -0.5"),
        ({"share": float("nan")}, "share must be at least 0, got nan"),
        ({"seconds": 0}, "seconds must be above 0, got 0"),
    ],
)
def test_a_value_outside_of_its_range(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_ranges(Settings(**settings))


@pytest.mark.parametrize("settings", [{}, {"limit": 1, "share": 0}, {"seconds": None}])
def test_values_in_their_ranges(settings):
    check_ranges(Settings(**settings))


def test_help_and_default():
    count, limit, *_ = dataclasses.fields(Settings)
    assert (default_of(count), default_of(limit)) == (1, None)
    assert count.metadata["help"] == "How many."
