"""Which problem comes next: from results so far and the seed alone, so a resumed run goes on alike.

The usual order is that of `RolloutSampler`: shuffled, and shuffled anew once all have been seen.
Curriculum and replay depart from it.
"""

import copy
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

from trl_r1zero.generation import row_seeds

from .problem_settings import Curriculum, Replay
from .rollout_sampler import shuffled_forever

_ONE_BAND = Curriculum(bands=(1.0,), weights=(1.0, 0.0))


def new_rate(rate: float, passed: float, newest_weight: float) -> float:
    """The exponential average of pass rates after a group of which a share `passed`."""
    return (1 - newest_weight) * rate + newest_weight * passed


def band_of(rate: float, bands: Sequence[float]) -> int:
    """The band of a pass rate, from 0: band b has rates from `bands[b - 1]` on, below `bands[b]`;
    the last one those up to 1."""
    return bisect_right(bands, rate)


def pick(chance: float, weights: Sequence[float]) -> int:
    """The index that a chance in [0, 1) stands for, each as likely as its weight, above 0, says."""
    ends = list(accumulate(weights))
    return bisect_right(ends, chance * ends[-1], hi=len(ends) - 1)


def chosen_groups(informative: Sequence[bool], wanted: int) -> list[int]:
    """Which groups make the rollout batch: the first `wanted` informative ones, and, where there
    are fewer, the first of the others; in the order in which they were sampled."""
    order = sorted(range(len(informative)), key=lambda group: not informative[group])
    return sorted(order[:wanted])


@dataclass
class ProblemChoice:
    """Chooses problems, which are numbers from 0, by what is known of them.

    Attributes:
        seed, shuffle: Of the usual order.
        curriculum, replay: The settings; None for off.
        rates: Running pass rate of each problem.
        draws: How often each was drawn, replays aside.
        unsolved: Problems to be replayed, longest ago first, and their failures in a row.
    """

    seed: int
    shuffle: bool
    curriculum: Curriculum | None
    replay: Replay | None
    rates: list[float]
    draws: list[int] = field(default_factory=list)
    unsolved: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draws = self.draws or [0] * len(self.rates)
        self.unsolved = dict(self.unsolved)  # pairs, where JSON has kept it
        self._order = shuffled_forever(len(self.rates), shuffle=self.shuffle, seed=self.seed)
        self._places: list[dict[int, int]] = []  # of each problem, in each pass

    def copied(self) -> "ProblemChoice":
        """One that changes alone."""
        other = copy.copy(self)
        other.rates, other.draws = list(self.rates), list(self.draws)
        other.unsolved = dict(self.unsolved)
        return other

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON can hold it: arguments of one that goes on alike."""
        return {
            "rates": list(self.rates),
            "draws": list(self.draws),
            "unsolved": list(self.unsolved.items()),
        }

    def replays(self, groups: int) -> list[int]:
        """The unsolved problems that a rollout batch of so many groups begins with, those whose
        last try is longest ago first."""
        return [] if self.replay is None else [*self.unsolved][: int(groups * self.replay.share)]

    def draw(self, step: int, count: int, taken: Collection[int]) -> list[int]:
        """The next problems, `count` of them, or as many as there are.

        Each draw picks a band at random by its weight, among the bands that have problems left,
        and takes the problem of it that was drawn least often; of several the one that comes first
        in the shuffled order of that pass. Without a curriculum there is one band, and the order is
        the usual one. Bands of weight 0 are drawn from where the others have nothing left.

        Args:
            step: GRPO step, from 0, of whose random stream the bands are.
            count: Problems wanted.
            taken: Problems of this step, which do not come twice.
        """
        settings = self.curriculum or _ONE_BAND
        free = [problem for problem in range(len(self.rates)) if problem not in taken]
        bands: list[deque[int]] = [deque() for _ in settings.weights]
        for problem in sorted(free, key=self._turn):
            rate = self.rates[problem] if self.curriculum else 0.0
            bands[band_of(rate, settings.bands)].append(problem)
        chosen = []
        numbers = range(len(taken), len(taken) + min(count, len(free)))
        for seed in row_seeds(self.seed, "problems", step, numbers):
            left = [(w, band) for w, band in zip(settings.weights, bands, strict=True) if band]
            left = [(w, band) for w, band in left if w] or [(1.0, band) for _, band in left]
            chance = (seed >> 10) / 2**53
            problem = left[pick(chance, [weight for weight, _ in left])][1].popleft()
            self.draws[problem] += 1
            chosen.append(problem)
        return chosen

    def _turn(self, problem: int) -> tuple[int, int]:
        drawn = self.draws[problem]
        while len(self._places) <= drawn:
            order = islice(self._order, len(self.rates))
            self._places.append({one: place for place, one in enumerate(order)})
        return drawn, self._places[drawn][problem]

    def learn(
        self, problems: Sequence[int], passed: Sequence[float], replayed: int = 0
    ) -> dict[str, float]:
        """Note which share of each problem's newest group was right, in the order of sampling;
        metrics of it, with the number of problems that were `replayed`."""
        metrics: dict[str, float] = {}
        if (curriculum := self.curriculum) is not None:
            bands = [band_of(self.rates[problem], curriculum.bands) for problem in problems]
            for band in range(len(curriculum.weights)):
                metrics[f"problems/band_{band}"] = bands.count(band)
            for problem, share in zip(problems, passed, strict=True):
                rate = self.rates[problem]
                self.rates[problem] = new_rate(rate, share, curriculum.newest_weight)
            metrics["problems/mean_pass_rate"] = sum(self.rates) / len(self.rates)
        if self.replay is not None:
            most = self.replay.max_replays or math.inf
            for problem, share in zip(problems, passed, strict=True):
                failed = self.unsolved.pop(problem, 0) + 1
                if share == 0 and failed <= most:
                    self.unsolved[problem] = failed
            metrics["problems/replayed_groups"] = replayed
            metrics["problems/unsolved"] = len(self.unsolved)
        return metrics
