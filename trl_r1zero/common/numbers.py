"""What counts as a number among what users' functions return."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any


def as_number(value: Any) -> float | None:
    """A number as a float, also one of numpy or a tensor without dimensions; None for all else, as
    for text, though `float` may read it."""
    if isinstance(value, Real):
        return float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # numpy's, torch's
        return as_number(value.item())
    return None


def as_rewards(function: str, given: Iterable[Any], responses: Iterable[str]) -> list[float]:
    """Rewards as floats; None stays, as NaN.

    Raises:
        ValueError: One is no number, or infinite; it names the row.
    """
    rewards = []
    for row, (value, response) in enumerate(zip(given, responses, strict=True)):
        number = math.nan if value is None else as_number(value)
        if number is None or math.isinf(number):
            kind = f" ({type(value).__name__})" if number is None else ""
            raise ValueError(
                f"{function} gave {value!r:.80}{kind} for row {row}, the response "
                f"{response!r:.80}; a reward must be a finite number"
            )
        rewards.append(number)
    return rewards
