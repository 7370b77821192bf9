"""A run as its folder tells of it: its kind, its lines of metrics, its settings, its answers."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from trl_r1zero.common.run_files import METRICS_FILE, Line, read_metrics, todays_settings
from trl_r1zero.data.files import read_jsonl
from trl_r1zero.evaluation.files import read_json
from trl_r1zero.evaluation.metrics import mean
from trl_r1zero.recipe.yaml_files import read_recipe
from trl_r1zero.rewards import is_correct

from .kinds import KINDS, RunKind

Row = dict[str, Any]  # of a table of generations

# (right before, right after) in words, the most informative first.
CHANGES = {
    (False, True): "became right",
    (False, False): "stayed wrong",
    (True, False): "became wrong",
    (True, True): "stayed right",
}


def by_change(pairs: Sequence[tuple[Row, Row]]) -> list[int]:
    """Indices of pairs of rows, before and after: the first of each of `CHANGES`, then the second
    of each, and so on."""
    numbers: dict[tuple[bool, bool], list[int]] = {change: [] for change in CHANGES}
    for number, (before, after) in enumerate(pairs):
        numbers[is_correct(before), is_correct(after)].append(number)
    rounds: Iterable[tuple[int | None, ...]] = zip_longest(*numbers.values())
    return [number for round_ in rounds for number in round_ if number is not None]


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def logged(lines: Sequence[Line], metric: str) -> list[float]:
    """The values of a metric, of the lines that have it."""
    return [line[metric] for line in lines if line.get(metric) is not None]


class LoggedRun:
    """What a report is made of: of its `lines` of metrics, `validations` are about validations,
    `rollouts` about the rollouts of EI steps, `training` about optimizer updates; `wall_time` is in
    seconds from the start of training to the last line.

    Raises:
        FileNotFoundError: The folder has no `metrics.jsonl`.
        ValueError: Its lines are of several kinds of runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        self.lines: list[Line] = read_metrics(folder)
        self.kind = self._find_kind()
        of_validations, of_rollouts = ("eval_accuracy", "eval_loss"), ("rollout_accuracy",)
        self.validations = [line for line in self.lines if line.keys() & of_validations]
        self.rollouts = [line for line in self.lines if line.keys() & of_rollouts]
        # The summary at the end has no step key.
        counted = [line for line in self.lines if self.kind.step_key in line]
        others = {*of_validations, *of_rollouts}
        self.training = [line for line in counted if not line.keys() & others]
        self.wall_time = max((line["elapsed_seconds"] for line in self.lines), default=0.0)

    def _find_kind(self) -> RunKind:
        found = [key for key in KINDS if any(key in line for line in self.lines)]
        if len(found) > 1:
            raise ValueError(
                f"{self.folder / METRICS_FILE} has lines with {' and with '.join(found)}, but the "
                f"lines of a run have one of {list(KINDS)}; give each run a folder of its own"
            )
        if found:
            return KINDS[found[0]]
        config = self.facts("config.json")  # nothing was logged yet
        known = (kind for kind in KINDS.values() if kind.own_setting in config)
        return next(known, KINDS["train_step"])

    @property
    def planned_steps(self) -> int | None:
        """How many steps the run was to have; None if its settings do not say."""
        number = self.facts("config.json").get(self.kind.planned)
        return number if number and number > 0 else None  # transformers: -1, count epochs instead

    @property
    def before_after_best(self) -> tuple[Line, Line, Line]:
        """First, last and best validation (the first of equal ones)."""
        pick = max if self.kind.higher_is_better else min
        best = pick(self.validations, key=lambda line: line[self.kind.best])
        return self.validations[0], self.validations[-1], best

    @property
    def validation_sets(self) -> list[str]:
        """Names of the validation sets, where there are several."""
        names = (re.fullmatch("validation/(.+)/accuracy", n) for x in self.validations for n in x)
        return list(dict.fromkeys(match[1] for match in names if match))

    @property
    def rollouts_of_steps(self) -> dict[int, Line]:
        """EI step -> its rollouts; of those that a resumed run sampled anew the last ones."""
        return {line["ei_step"]: line for line in self.rollouts}

    @cached_property
    def largest_k(self) -> int | None:
        """The largest k of the metrics `rollout_pass@k`; None if there is none."""
        names = {name for line in self.rollouts for name in line}
        found = (re.fullmatch(r"rollout_pass@(\d+)", name) for name in names)
        return max((int(match[1]) for match in found if match), default=None)

    def facts(self, *path: str) -> dict[str, Any]:
        """A JSON file of the folder; nothing if the run did not write it."""
        file = self.folder.joinpath(*path)
        return read_json(file) if file.is_file() else {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The settings of `recipe.yaml`; nothing if the run did not write it. RecipeError if it
        cannot be read."""
        recipe = self.folder / "recipe.yaml"
        written = read_recipe(recipe) if recipe.is_file() else []
        return {setting.key: setting.value for setting in written}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those of `recipe.yaml`, and those of `config.json` that it does not have, by the names
        of today."""
        return todays_settings(self.facts("config.json") | self.recipe)

    def points(self, metric: str, x: str) -> tuple[list[float], list[float]]:
        """The finite values of a metric by ascending x; the mean of those at one x (such as the
        updates of a GRPO step)."""
        if metric.startswith("eval_"):
            lines = self.validations
        else:
            lines = self.rollouts if metric.startswith("rollout_") else self.training
        values: dict[float, list[float]] = defaultdict(list)
        for line in lines:
            if is_finite(line.get(metric)):  # the loss of a run that diverged is NaN
                values[line[x]].append(line[metric])
        return sorted(values), [mean(values[key]) for key in sorted(values)]

    # Tokens

    def tokens_at(self, line: Line) -> float | None:
        r"""Tokens that the run had spent on training when a line was logged; None if unknown.

        * GRPO: sampled response tokens. `length/mean` of an update is the mean response length over
          its train batch, and over the updates of a GRPO step each rollout is in as many train
          batches as there are epochs. So they are the sum over lines of
          :math:`\Delta updates \cdot length/mean \cdot B_{train} / epochs`, which at the end of a
          GRPO step is the number of its rollouts times their mean length.
        * Expert iteration: sampled response tokens, `rollout_tokens` of the EI steps so far.
        * Others sample nothing in training: `num_tokens`, prompts and responses trained on.

        What validations sample is not in it.
        """
        if self.kind.step_key == "ei_step":
            past = [x for step, x in self.rollouts_of_steps.items() if step <= line["ei_step"]]
            known = logged(past, "rollout_tokens")
            return sum(known) if len(known) == len(past) and self.rollouts else None
        if not self._tokens_of_updates:
            return None
        updates, tokens = zip(*self._tokens_of_updates, strict=True)
        return float(np.interp(line["step"], updates, tokens))  # between lines they grow evenly

    @cached_property
    def _tokens_of_updates(self) -> list[tuple[float, float]]:
        """(updates done, tokens so far) from (0, 0) on; nothing where they are not known."""
        is_grpo = self.kind.step_key == "grpo_step"
        batch = self.settings.get("train_batch_size")
        epochs = self.settings.get("epochs_per_rollout_batch")
        metric = "length/mean" if is_grpo else "num_tokens"
        lines = [line for line in self.training if line.get(metric) is not None]
        if not lines or (is_grpo and not (batch and epochs)):
            return []
        points = [(0.0, 0.0)]
        for line in lines:
            updates, tokens = points[-1]
            if line["step"] > updates:
                # A line has the means over the updates since the line before it.
                sampled = (line["step"] - updates) * line[metric] * (batch or 0) / (epochs or 1)
                points.append((line["step"], tokens + sampled if is_grpo else line[metric]))
        return points

    # Answers of validations

    def generation_file(self, validation: Line) -> Path:
        """Where the generations of a validation should be."""
        key = self.kind.step_key
        return self.folder / "evaluations" / f"{key}_{validation[key]:05d}.jsonl"

    def answers(self, validation: Line) -> list[Row]:
        """The rows of a validation's generations; nothing if there are none."""
        file = self.generation_file(validation)
        if not self.kind.samples_validation or not file.is_file():
            return []
        return [row.fields for row in read_jsonl(file)]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Rows of the first and of the last validation, where both answer the same prompt."""
        if not self.validations:
            return []
        # Validation takes its questions in the order of the data set; a different number of them
        # (in a resumed run) leaves a common beginning.
        first, last = self.answers(self.validations[0]), self.answers(self.validations[-1])
        rows = zip(first, last, strict=False)
        return [(before, after) for before, after in rows if before["prompt"] == after["prompt"]]
