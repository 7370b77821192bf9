"""Experiments as data: a base recipe, what is varied, seeds, and the question that this answers.

    question: Which learning rate?
    script: ../grpo.py                    # relative to this file, as all paths here
    seeds: [0, 1, 2]
    grid:
      learning_rate: [1e-4, 2e-4]
    scales:                               # the same experiment in several sizes
      embedded:
        recipe: ../quickstart/grpo.yaml
      qwen2.5-math-1.5b:
        recipe: ../qwen2.5-math-1.5b/grpo.yaml
        grid: {learning_rate: [1e-5, 3e-5]}

A scale may have `seeds`, `grid`, `variants` and `baseline` of its own, each in place of the
experiment's.
"""

import itertools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, type_name
from trl_r1zero.recipe import RecipeError, parse_recipe
from trl_r1zero.recipe.bundled import find_recipe
from trl_r1zero.recipe.yaml_files import dump_yaml, format_value

Settings = dict[str, Any]

# A sweep says these itself.
RESERVED_SETTINGS = ("output_dir", "resume_from_checkpoint")


@dataclass
class Scale:
    """An experiment at one size."""

    recipe: str  # the base recipe, and `settings`: changes to it that all runs have
    settings: Settings = field(default_factory=dict)
    variants: dict[str, Settings] | None = None  # name -> changes that make a variant
    # Setting -> its values; all combinations, with each of the variants.
    grid: dict[str, list[Any]] | None = None
    # Label of the variant that the others are compared with; unset: the first.
    baseline: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # one run of each variant for each
    accelerate_config: str | None = None  # for `accelerate launch --config_file`
    gpus: int = 0  # GPUs that a run takes; 0: none, or whatever is there
    # What a run takes, before any has been measured, and where that number is from.
    minutes: float | None = None
    minutes_from: str = "the experiment's file"

    def labelled(self) -> dict[str, Settings]:
        """Label -> changes to the recipe (without `settings`), in the order of the file."""
        axes = [[(name, value) for value in values] for name, values in (self.grid or {}).items()]
        labelled = {}
        for name, changes in (self.variants or {"": {}}).items():
            for point in itertools.product(*axes):
                words = [name, *(f"{key} {format_value(value)}" for key, value in point)]
                labelled[", ".join(filter(None, words)) or "base"] = {**changes, **dict(point)}
        return labelled


@dataclass
class ExperimentFile:
    """The keys of an experiment's file: the script is one of recipes/*.py, `seed_settings` take a
    run's seed, and the last four are as a scale's, for those that have none of their own."""

    question: str
    script: str
    scales: dict[str, dict[str, Any]]
    seed_settings: list[str] = field(default_factory=lambda: ["seed"])
    seeds: list[int] | None = None
    variants: dict[str, dict[str, Any]] | None = None
    grid: dict[str, list[Any]] | None = None
    baseline: str | None = None


@dataclass
class Experiment:
    """One experiment at one scale: its file, whose path names it, and one of the scales there."""

    path: Path
    file: ExperimentFile
    scale_name: str
    scale: Scale

    @property
    def name(self) -> str:
        return self.path.stem

    def beside(self, path: str) -> Path:
        """A path of the file, which is relative to the file, relative to the current directory."""
        found = (self.path.parent / path).resolve()
        here = Path.cwd()
        return found.relative_to(here) if found.is_relative_to(here) else found

    @property
    def baseline(self) -> str:
        """The label that the others are compared with."""
        return self.scale.baseline or next(iter(self.scale.labelled()))


def read_experiment(path: str | Path, scale: str | None = None) -> Experiment:
    """Read an experiment's file, by its path or name, at one of its scales, by default the first.
    RecipeError for what is wrong in it, with the key, or if it has no such scale."""
    path = find_recipe(path)
    (file,) = parse_recipe((ExperimentFile,), ["--config", str(path)]).instances
    if not file.scales:
        raise RecipeError(f"{path}: scales is empty; give one, with its recipe")
    scales = {}
    for name, values in file.scales.items():
        try:
            scales[name] = _scale(values, file)
        except RecipeError as error:
            raise RecipeError(f"{path}: scale {name!r}: {error}") from None
    scale = next(iter(scales)) if scale is None else scale
    if scale not in scales:
        raise RecipeError(f"{path}: {unknown_name_message('scale', scale, scales)}")
    return Experiment(path, file, scale, scales[scale])


def _scale(values: Mapping[str, Any], file: ExperimentFile) -> Scale:
    hints = typing.get_type_hints(Scale)
    shared = {key: getattr(file, key) for key in ("seeds", "variants", "grid", "baseline")}
    arguments = {key: value for key, value in shared.items() if value is not None}
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(unknown_name_message("key", key, hints))
        arguments[key] = fit(value, hints[key])
        if arguments[key] is MISFIT:
            raise RecipeError(f"{key}: got {value!r}, expected {type_name(hints[key])}")
    if "recipe" not in arguments:
        raise RecipeError("recipe is missing; give the path of the base recipe")
    scale = Scale(**arguments)
    if not scale.seeds or len(set(scale.seeds)) < len(scale.seeds):
        raise RecipeError(f"seeds: got {scale.seeds}, expected one or more, each once")
    for key, list_of in (scale.grid or {}).items():
        if not list_of:
            raise RecipeError(f"grid: {key} has no values; give some, or leave it out")
    labelled = scale.labelled()
    for label, changes in labelled.items():
        if taken := {*changes, *scale.settings} & {*RESERVED_SETTINGS, *file.seed_settings}:
            raise RecipeError(
                f"{label}: {', '.join(sorted(taken))} cannot be set here: a sweep sets it for each "
                "run"
            )
    values_of_grid = map(len, (scale.grid or {}).values())
    if len(labelled) < len(scale.variants or [""]) * math.prod(values_of_grid):
        raise RecipeError(f"two variants have the same label; {', '.join(labelled)}")
    if scale.baseline is not None and scale.baseline not in labelled:
        raise RecipeError(unknown_name_message("baseline", scale.baseline, labelled))
    return scale


def argument(name: str, value: Any) -> str:
    """A setting as an argument of a recipe's command line."""
    text = value if isinstance(value, str) else dump_yaml([value], flow=True).strip()[1:-1]
    return f"--{name}={text}"
