"""From an experiment to its runs: each one's settings, checked, and its folder.

A run's folder is named by what sets it apart from the base recipe, and not by the experiment: two
experiments that ask for the same run share it.
"""

import hashlib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.common.run_files import todays_settings
from trl_r1zero.common.types import to_plain
from trl_r1zero.devices.visible import VARIABLE, VisibleDevices, parse_devices
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig
from trl_r1zero.recipe import ParsedRecipe, RecipeError, parse_recipe
from trl_r1zero.recipe.yaml_files import format_value, read_recipe
from trl_r1zero.runs.kinds import METHODS

from .experiment import RESERVED_SETTINGS, Experiment, argument

MAX_NAME = 60  # characters of a folder's name, without the seed
_ONCE_MAX_NAME = 120  # of one that an earlier version made, and that is kept
# Settings of a machine or of a start: a run goes on as the same one if they change.
_OF_NO_RUN = {*RESERVED_SETTINGS, "vllm_server"}


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that an experiment asks for: of the variant with this label, with all its settings, and
    what stands behind the script's name on the command line."""

    label: str
    seed: int
    folder: Path
    recipe: ParsedRecipe
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.label}, seed {self.seed}"

    def differing_settings(self, other: Mapping[str, Any]) -> list[str]:
        """In words, the settings of a run that another one with these values has otherwise."""
        here, there = (
            {key: to_plain(value) for key, value in todays_settings(settings).items()}
            for settings in (self.recipe.values, other)
        )
        return [
            f"{key}: {format_value(there[key])} there, {format_value(value)} here"
            for key, value in here.items()
            if key not in _OF_NO_RUN and key in there and there[key] != value
        ]

    def check_folder(self) -> None:
        """Raise a ValueError if the folder holds a run with other settings."""
        file = self.folder / "recipe.yaml"
        if not file.is_file():
            return
        found = {setting.key: setting.value for setting in read_recipe(file)}
        if differing := self.differing_settings(found):
            raise ValueError(
                f"{self.folder} holds a run with other settings ({'; '.join(differing)}): a recipe "
                "was changed since. Move the folder away, or give another --root"
            )


@dataclass(frozen=True)
class Plan:
    """An experiment's runs, seed by seed, so that one seed of all variants is there early, and the
    scale's folder, below which all runs and reports are."""

    experiment: Experiment
    folder: Path
    runs: tuple[PlannedRun, ...]

    @property
    def groups(self) -> dict[str, list[PlannedRun]]:
        """Label -> its runs."""
        labels = self.experiment.scale.labelled()
        groups: dict[str, list[PlannedRun]] = {label: [] for label in labels}
        for run in self.runs:
            groups[run.label].append(run)
        return groups


def make_plan(experiment: Experiment, root: str | Path, seeds: Sequence[int] | None = None) -> Plan:
    """Plan an experiment's runs in folders below `<root>/<scale>/<name of the base recipe>/`, with
    other seeds than the experiment's if some are given. RecipeError if settings of runs do not fit
    their script; the message names all such variants."""
    script = experiment.beside(experiment.file.script)
    if script.stem not in METHODS:
        raise RecipeError(
            f"{experiment.path}: script: got {script}, expected one of recipes/: "
            f"{', '.join(f'{name}.py' for name in METHODS)}"
        )
    scale = experiment.scale
    seeds = scale.seeds if seeds is None else seeds
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds: got {', '.join(map(str, seeds))}; give each of them once")
    recipe = experiment.beside(scale.recipe)
    folder = Path(root) / experiment.scale_name

    def parse(arguments: Sequence[str]) -> ParsedRecipe:
        return parse_recipe(METHODS[script.stem], ["--config", str(recipe), *arguments])

    base = parse([]).values
    label_of: dict[Path, str] = {}
    runs, problems = [], []
    for seed, (label, changes) in itertools.product(seeds, scale.labelled().items()):
        settings = {**scale.settings, **changes}
        seeded = settings | dict.fromkeys(experiment.file.seed_settings, seed)
        arguments = [argument(key, value) for key, value in seeded.items()]
        try:
            name = _folder_name(parse(arguments).values, base, settings)
        except ValueError as error:
            problems.append(f"{label}: {error}")
            continue
        output_dir = _folder(folder / recipe.stem, name, seed)
        if output_dir in label_of:
            problems.append(f"{label_of[output_dir]} and {label} are the same run; leave one out")
        label_of[output_dir] = label
        arguments += [f"--output_dir={output_dir}", "--resume_from_checkpoint=auto"]
        whole = ("--config", str(recipe), *arguments)
        runs.append(PlannedRun(label, seed, output_dir, parse(arguments), whole))
    if problems:
        lines = "\n".join(dict.fromkeys(problems))
        raise RecipeError(f"{experiment.path}, scale {experiment.scale_name!r}:\n{lines}")
    return Plan(experiment, folder, tuple(runs))


def _folder_name(
    values: Mapping[str, Any], base: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """Such as `learning_rate=1e-4`; `base`, if nothing differs from the base recipe."""
    words = [
        f"{key}={format_value(to_plain(values[key]))}"
        for key in sorted(settings)
        if values[key] != base[key]
    ]
    return re.sub(r"[^A-Za-z0-9.,=_+-]+", "-", ",".join(words) or "base")


def _folder(parent: Path, name: str, seed: int) -> Path:
    """A run's folder; of a long name there are the first settings and a hash of all."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    whole, of_all = name[:_ONCE_MAX_NAME], f"-{digest}"
    if len(name) > _ONCE_MAX_NAME:
        whole = name[: _ONCE_MAX_NAME - len(of_all)] + of_all
    if len(name) > MAX_NAME and not (parent / f"{whole}-seed_{seed}").is_dir():
        start = name[: MAX_NAME - len(of_all)]
        whole = (start.rpartition(",")[0] or start) + of_all
    return parent / f"{whole}-seed_{seed}"


# Slots


@dataclass(frozen=True)
class Slot:
    """A place for one run: its number from 0, and its GPUs, counted from 0 within
    CUDA_VISIBLE_DEVICES (none: what the run finds)."""

    number: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join(self.gpus)

    def environment(self, visible: VisibleDevices) -> dict[str, str]:
        """What makes its GPUs, and no others, visible to a run; a ValueError if they are not among
        `visible`."""
        if not self.gpus:
            return {}
        return {VARIABLE: visible.variable_for(parse_devices(str(self), visible))}


def make_slots(devices: Sequence[str], parallel: int, gpus: int) -> list[Slot]:
    """The slots of a command line: for each of `devices`, the GPUs of a run such as `0,1`, of which
    it takes so many; without devices so many places as runs are to be `parallel`. A ValueError if a
    slot has another number of GPUs, or a GPU is in two of them."""
    if not devices:
        return [Slot(number) for number in range(parallel)]
    slots = [Slot(number, tuple(text.split(","))) for number, text in enumerate(devices)]
    flat = [gpu for slot in slots for gpu in slot.gpus]
    got = f"devices: got {' '.join(devices)}"
    if not all(gpu.isdigit() for gpu in flat):
        raise ValueError(f"{got}, expected indices such as 0,1 2,3")
    if len(set(flat)) < len(flat):
        raise ValueError(f"{got}, but a GPU belongs to one run at a time")
    for slot in slots:
        if len(slot.gpus) != max(gpus, 1):
            raise ValueError(
                f"devices: got {slot} for a run, but at this scale one takes {max(gpus, 1)}"
            )
    return slots


def launch_command(experiment: Experiment, run: PlannedRun, slot: Slot) -> list[str]:
    """What starts a run in a slot, whose GPUs are those that the run sees.

    A vLLM server of the run's own gets as many GPUs as the recipe gives it, the slot's last ones,
    and the trainer the others, one process each. In a slot of one GPU both are on it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    config_file = experiment.scale.accelerate_config
    if config_file is not None:
        command += ["--config_file", str(experiment.beside(config_file))]
    arguments = list(run.arguments)
    if slot.gpus:
        server: dict[str, Any] | None = run.recipe.values.get("vllm_server")
        of_server = VLLMServerConfig.from_settings(server).num_devices if server is not None else 0
        processes = max(len(slot.gpus) - of_server, 1)
        if server is not None and server.get("devices") is not None:
            last = range(len(slot.gpus))[-of_server:]
            own = {**server, "devices": ",".join(map(str, last))}
            arguments.append(argument("vllm_server", own))
        # Without the number accelerate starts a process for each GPU.
        command += ["--num_processes", str(processes)]
        if processes > 1:
            command += ["--main_process_port", "0"]  # a free one: other slots' runs have theirs
    return [*command, str(experiment.beside(experiment.file.script)), *arguments]
