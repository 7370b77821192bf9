"""A run as its folder tells of it: which kind it is, its lines of metrics, its settings.

The kinds of runs are those of `KINDS`: GRPO, expert iteration (EI), SFT on traces, DPO and
instruction tuning. A run's kind is the one step key that the lines of its `metrics.jsonl` have.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.evaluation import mean
from trl_r1zero.recipe.yaml_files import read_recipe
from trl_r1zero.rewards import is_correct
from trl_r1zero.trainers.run_folder import METRICS_FILE, STEP_NAMES, read_metrics

Line = dict[str, Any]  # one line of metrics.jsonl
Row = dict[str, Any]  # of a table of generations

# Any of these is in a line about a validation.
_OF_VALIDATIONS = ("eval_accuracy", "eval_loss")


@dataclass(frozen=True)
class RunKind:
    """What is particular to a kind of run.

    Attributes:
        setting: A setting of config.json that runs of kinds further down in `KINDS` do not have.
        planned: The setting that says how many steps the run was to have.
        best: The metric of validation that says which is the best.
        higher_is_better: Whether its highest value is.
        samples: Whether a validation samples answers, and writes a table of them.
    """

    setting: str
    planned: str = "max_steps"
    best: str = "eval_accuracy"
    higher_is_better: bool = True
    samples: bool = True


# By step key.
KINDS = {
    "grpo_step": RunKind("n_grpo_steps", planned="n_grpo_steps"),
    "ei_step": RunKind("n_ei_steps", planned="n_ei_steps"),
    "dpo_step": RunKind("precompute_ref_log_probs", samples=False),
    "tuning_step": RunKind(
        "total_batch_size", best="eval_loss", higher_is_better=False, samples=False
    ),
    "train_step": RunKind("train_batch_size"),
}


def step_key(lines: Sequence[Line], file: str | Path = METRICS_FILE) -> str | None:
    """The step key that a file's lines have; None if they have none (nothing was logged yet).

    Raises:
        ValueError: They have several, so they are not of one run.
    """
    found = [key for key in STEP_NAMES if any(key in line for line in lines)]
    if len(found) > 1:
        raise ValueError(
            f"{file} has lines with {' and with '.join(found)}, but the lines of a run "
            f"have one of {list(STEP_NAMES)}; give each run a folder of its own"
        )
    return found[0] if found else None


def training_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines about optimizer updates (not those of validations and of an EI step's rollouts, and
    not the summary at the end)."""
    key = step_key(lines)
    others = (*_OF_VALIDATIONS, "rollout_accuracy")
    return [line for line in lines if key in line and not any(other in line for other in others)]


def validation_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines about validations."""
    return [line for line in lines if any(name in line for name in _OF_VALIDATIONS)]


def rollout_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines about the rollouts of EI steps."""
    return [line for line in lines if "rollout_accuracy" in line]


def rollout_pass_metric(lines: Sequence[Line]) -> str | None:
    """The metric of EI rollouts such as `rollout_pass@8`, of the largest k; None if there is none.

    Its standard error is the metric with `_stderr` behind.
    """
    sizes = {
        int(match[1])
        for line in rollout_lines(lines)
        for name in line
        if (match := re.fullmatch(r"rollout_pass@(\d+)", name))
    }
    return f"rollout_pass@{max(sizes)}" if sizes else None


def logged(lines: Sequence[Line], metric: str) -> list[float]:
    """The values of a metric, of the lines that have it."""
    return [line[metric] for line in lines if line.get(metric) is not None]


def metric_cell(lines: Sequence[Line], metric: str, write: Callable[[float], str]) -> str:
    """A metric's mean over lines for a table, with its mean standard error where one is logged."""
    values, errors = logged(lines, metric), logged(lines, f"{metric}_stderr")
    text = write(mean(values)) if values else "-"
    return f"{text} ± {write(mean(errors))}" if errors else text


# (right before, right after) in words, the most telling first.
CHANGES = {
    (False, True): "became right",
    (False, False): "stayed wrong",
    (True, False): "became wrong",
    (True, True): "stayed right",
}


def telling(pairs: Sequence[tuple[Row, Row]]) -> list[int]:
    """Indices of pairs of rows, before and after: the first of each of `CHANGES`, then the second
    of each, and so on."""
    by_kind: dict[tuple[bool, bool], list[int]] = {kind: [] for kind in CHANGES}
    for number, (before, after) in enumerate(pairs):
        by_kind[is_correct(before), is_correct(after)].append(number)
    rounds: Iterable[tuple[int | None, ...]] = zip_longest(*by_kind.values())
    return [number for numbers in rounds for number in numbers if number is not None]


@dataclass
class LoggedRun:
    """What a report is made of.

    Attributes:
        folder: The run's `output_dir`.
        lines: Its lines of metrics; `training`, `validations` and `rollouts` are some of them.
        step_key: The key by which they count steps; `step_name` says what it counts, and `kind`
            what else is particular to such runs.
        wall_time: Seconds from the start of training to the last line.

    Raises:
        FileNotFoundError: The folder has no `metrics.jsonl`.
        ValueError: Its lines are of several kinds of runs.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.name = self.folder.resolve().name
        self.lines = read_metrics(self.folder)
        self.step_key = step_key(self.lines, self.folder / METRICS_FILE) or self._planned_step_key()
        self.step_name = STEP_NAMES[self.step_key]
        self.kind = KINDS[self.step_key]
        self.training = training_lines(self.lines)
        self.validations = validation_lines(self.lines)
        self.rollouts = rollout_lines(self.lines)
        self.wall_time = max((line["elapsed_seconds"] for line in self.lines), default=0.0)

    def _planned_step_key(self) -> str:
        # Before the first line the settings tell.
        config = self.facts("config.json")
        return next((key for key, kind in KINDS.items() if kind.setting in config), "train_step")

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

    def facts(self, *path: str) -> dict[str, Any]:
        """A JSON file of the folder; nothing if the run did not write it."""
        file = self.folder.joinpath(*path)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The settings of `recipe.yaml`; nothing if the run did not write it.

        Raises:
            RecipeError: It cannot be read.
        """
        recipe = self.folder / "recipe.yaml"
        written = read_recipe(recipe) if recipe.is_file() else []
        return {setting.key: setting.value for setting in written}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings: those of `recipe.yaml`, and those of `config.json` that it does not have.

        Raises:
            RecipeError: `recipe.yaml` cannot be read.
        """
        return self.facts("config.json") | self.recipe

    def tokens_at(self, line: Line) -> float | None:
        r"""Tokens that the run had spent on training when a line was logged.

        * GRPO: sampled response tokens. `length/mean` of an update is the mean response length over
          its train batch, and over the updates of a GRPO step each rollout is in as many train
          batches as there are epochs. So they are the sum over lines of
          :math:`\Delta updates \cdot length/mean \cdot B_{train} / epochs`, which at the end of a
          GRPO step is the number of its rollouts times their mean length.
        * Expert iteration: sampled response tokens, `rollout_tokens` of the EI steps so far.
        * Others sample nothing in training: `num_tokens`, prompts and responses trained on.

        What validations sample is not in it.

        Returns:
            None where the run did not log what it takes.
        """
        if self.step_key == "ei_step":
            # A resumed run may have sampled a step's rollouts anew: the last ones count.
            of_step = {rollouts["ei_step"]: rollouts for rollouts in self.rollouts}
            past = [of_step[step] for step in of_step if step <= line["ei_step"]]
            tokens = logged(past, "rollout_tokens")
            return sum(tokens) if len(tokens) == len(past) and self.rollouts else None
        for (start, before), (end, after) in pairwise(self._tokens_of_updates):
            if line["step"] <= end:  # between two lines they grow evenly
                return before + (after - before) * (line["step"] - start) / (end - start)
        return self._tokens_of_updates[-1][1] if self._tokens_of_updates else None

    @cached_property
    def _tokens_of_updates(self) -> list[tuple[float, float]]:
        """(updates done, tokens so far) from (0, 0) on; nothing where they are not known."""
        batch = self.settings.get("train_batch_size")
        epochs = self.settings.get("epochs_per_rollout_batch")
        is_grpo = self.step_key == "grpo_step"
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

    def generation_file(self, validation: Line) -> Path:
        """Where the generations of a validation should be."""
        return (
            self.folder / "evaluations" / f"{self.step_key}_{validation[self.step_key]:05d}.jsonl"
        )

    def generation_files(self) -> list[Path]:
        """Where the generations of the first and the last validation should be, if there are."""
        if not self.kind.samples:
            return []
        ends = [self.validations[0], self.validations[-1]] if self.validations else []
        return [self.generation_file(line) for line in ends]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Rows of the first and of the last validation, where both answer the same prompt."""
        files = self.generation_files()
        if not files or not all(file.is_file() for file in files):
            return []
        # Validation takes its questions in the order of the data set; a different number of them
        # (in a resumed run) leaves a common beginning.
        rows = zip(*([row.fields for row in read_jsonl(file)] for file in files), strict=False)
        return [(before, after) for before, after in rows if before["prompt"] == after["prompt"]]
