"""Two things timed in turns: seconds, and the ratio pair by pair.

Machines drift. Two runs right after one another drift together, so the ratio of a pair is steadier
than either time; which of the two goes first changes from pair to pair. Quoted is the median of
the ratios.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds, and CPU seconds of this process (all of its threads)."""

    wall: float
    cpu: float

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


def now(device: torch.device) -> Seconds:
    """The clocks, once the device has done what it was told before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Spread:
    """A median with its spread over pairs.

    Attributes:
        median, lower_quartile, upper_quartile: Over the pairs.
        low, high: 95% bootstrap interval of the median (10,000 resamples of the pairs).
        values: One for each pair, in order.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        array_P = np.asarray(values, dtype=float)
        resampled = np.random.default_rng(0).choice(array_P, (10_000, len(array_P)))
        low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
        lower, median, upper = np.quantile(array_P, [0.25, 0.5, 0.75])
        return cls(
            float(median), float(lower), float(upper), float(low), float(high), array_P.tolist()
        )

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower_quartile:.2f} to {self.upper_quartile:.2f})"


T = TypeVar("T")


def run_pairs(
    first: Callable[[int], T],
    second: Callable[[int], T],
    *,
    pairs: int,
    warmup: int,
) -> list[tuple[T, T]]:
    """Call both in turns, each with the pair's number, and return what they return.

    Args:
        first, second: Take the number of the pair; the other one goes first in odd pairs.
        pairs: How many pairs count, numbered from 0.
        warmup: Pairs before them, numbered from -warmup, whose results are dropped.
    """
    if pairs < 1 or warmup < 0:
        raise ValueError(f"pairs must be at least 1 and warmup at least 0, got {pairs}, {warmup}")
    results = []
    for number in range(-warmup, pairs):
        if number % 2 == 0:
            a = first(number)
            b = second(number)
        else:
            b = second(number)
            a = first(number)
        if number >= 0:
            results.append((a, b))
    return results
