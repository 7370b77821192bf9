"""A warning where a run goes on and learns nothing more, though all its numbers are finite."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

_LINES = 10  # of the metrics, one after the other
_NO_ENTROPY = 1e-3  # nats per token


@dataclass(frozen=True)
class _Sign:
    """What shows in a metric: `holds` of its value, what that means, and what to look at."""

    metric: str
    holds: Callable[[float], bool]
    means: str
    causes: str


_SIGNS = (
    _Sign(
        "zero_advantage_groups",
        lambda share: share >= 1,
        "all rollouts of each group have the same reward, so no update changes anything",
        "questions that are all too easy or all too hard, a reward that gives one value, answers "
        "that end before they are complete",
    ),
    _Sign(
        "entropy",
        lambda nats: nats <= _NO_ENTROPY,
        "the policy is certain of every token, so all samples are alike",
        "too high a learning rate, too low a temperature, too many updates on the same rollouts",
    ),
    _Sign(
        "truncated",
        lambda share: share >= 1,
        "every completion ends at the length limit, before it has an answer",
        "max_completion_length below what answers need, a prompt whose stop string the model does "
        "not write, an end token that is not the model's",
    ),
)


class CollapseCallback(TrainerCallback):
    """Warns once of each of these, where it has lasted for ten lines of metrics."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, int]] = {}  # metric -> first update, lines
        self._told: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        for sign in _SIGNS:
            value = logs.get(sign.metric)
            if value is None:  # where no row is trained on there is no entropy
                continue
            first, lines = self._since.get(sign.metric, (state.global_step, 0))
            if not sign.holds(value):
                self._since.pop(sign.metric, None)
                continue
            self._since[sign.metric] = first, lines + 1
            if lines + 1 >= _LINES and sign.metric not in self._told:
                self._told.add(sign.metric)
                logger.warning(
                    "since update %d, %s (%s %.3g, reward %.3g). Likely causes: %s",
                    first, sign.means, sign.metric, value, logs["reward"], sign.causes,
                )  # fmt: skip
