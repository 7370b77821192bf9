"""The settings of `problem_sampling`; docs/problem_sampling.md says what each is."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

from trl_r1zero.common.arguments import AT_LEAST_0, Count, Range, check_ranges
from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, members, type_name

_AT_LEAST_1 = Range("at least 1", lambda value: 1 <= value < math.inf)
_Share = Annotated[float, Range("from 0 to 1", lambda value: 0 <= value <= 1)]
_Part = Annotated[float, Range("above 0 and at most 1", lambda value: 0 < value <= 1)]


@dataclass(frozen=True)
class DynamicSampling:
    """Sample on until the rollout batch has its number of groups that teach something."""

    max_rounds: Count = 10
    metric: Literal["advantage", "accuracy"] = "advantage"
    oversampling: Annotated[float, _AT_LEAST_1] = 1.0  # from the second round on


@dataclass(frozen=True)
class DifficultyFilter:
    """Train on problems whose pass rate under the start's policy is within bounds."""

    min_pass_rate: _Share = 0.01
    max_pass_rate: _Share = 0.99
    completions: Count = 8
    seed: Annotated[int, AT_LEAST_0] = 0
    cache_dir: str | None = None  # None: beside the run's folder

    def __post_init__(self) -> None:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(
                f"min_pass_rate ({self.min_pass_rate}) is above max_pass_rate "
                f"({self.max_pass_rate}), so no problem would be left"
            )


@dataclass(frozen=True)
class Curriculum:
    """Draw problems by bands of their running pass rate."""

    bands: tuple[float, ...] = (0.25, 0.75)  # where one ends and the next begins
    weights: tuple[float, ...] = (1.0, 2.0, 1.0)
    newest_weight: _Part = 0.5
    first_rate: _Share = 0.5

    def __post_init__(self) -> None:
        if not self.bands or not all(a < b <= 1 for a, b in pairwise((0.0, *self.bands))):
            raise ValueError(
                f"bands must rise, each above 0 and at most 1, such as [0.25, 0.75]; got "
                f"{list(self.bands)}"
            )
        good = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
        if len(self.weights) != len(self.bands) + 1 or not good:
            raise ValueError(
                f"weights must have one number for each of the {len(self.bands) + 1} bands, finite "
                f"and at least 0, not all 0; got {list(self.weights)}"
            )


@dataclass(frozen=True)
class Replay:
    """Sample again what no response of a problem's last group solved."""

    share: _Part = 0.25
    max_replays: Count | None = 3


@dataclass(frozen=True)
class ProblemSettings:
    """What `problem_sampling` may have; each part is off where it is None."""

    dynamic: DynamicSampling | None = None
    filter: DifficultyFilter | None = None
    curriculum: Curriculum | None = None
    replay: Replay | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ProblemSettings":
        """The settings that a recipe's mapping says; a ValueError if there are none, a key is
        unknown, or a value is not of its type or range."""
        parts = {}
        for key, value in settings.items():
            where, known = f"problem_sampling.{key}", typing.get_type_hints(cls)
            if key not in known:
                raise ValueError(unknown_name_message("part of problem_sampling", key, known))
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{where} must be a mapping, {{}} for all defaults; got {value!r}")
            if value is not None:
                parts[key] = _made(where, members(known[key])[0], value)
        if not parts:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"problem_sampling is empty; remove it, or name one of {names}")
        return cls(**parts)


def _made(where: str, kind: type, settings: Mapping[str, Any]) -> Any:
    """An instance of a part; a ValueError that says where."""
    hints, values = typing.get_type_hints(kind), {}
    for key, value in settings.items():
        if key not in hints:
            raise ValueError(unknown_name_message(f"setting of {where}", key, hints))
        # From Python a tuple is as good as YAML's list.
        values[key] = fit(list(value) if isinstance(value, tuple) else value, hints[key])
        if values[key] is MISFIT:
            raise ValueError(f"{where}.{key} must be {type_name(hints[key])}, got {value!r}")
    try:
        made = kind(**values)
        check_ranges(made)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    return made
