"""Which runs are seeds of one group: those whose settings are equal, seeds aside."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_r1zero.recipe.yaml_files import format_value
from trl_r1zero.runs.logged_run import LoggedRun

ONE_GROUP = "base"
# A setting of None has no number or name to show. What it means, where it means something:
_NONE_NAMES = {"num_examples": "all"}
# These say where a run writes, what it tells of itself, or how it is cut to fit the memory. They do
# not make it another experiment. Neither does a key that ends in `seed`.
_NOT_COMPARED = {
    "debug", "disable_tqdm", "eval_every", "eval_on_start", "gradient_accumulation_steps",
    "local_rank", "num_completions_to_print", "num_rollouts_to_log", "output_dir",
    "per_device_eval_batch_size", "per_device_train_batch_size", "project", "report_to",
    "resume_from_checkpoint", "reward_workers", "run_name", "skip_memory_metrics",
    "vllm_group_port", "vllm_server_base_url", "vllm_server_host", "vllm_server_port",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor",
}  # fmt: skip
_NOT_COMPARED_PREFIXES = ("hub_", "log_", "logging_", "push_to_hub", "save_", "trackio_")


def differing_settings(runs: Sequence[LoggedRun]) -> list[str]:
    """Names of the settings that make runs different experiments.

    They are keys of `recipe.yaml`, which has what was asked for; `config.json`, which also has what
    follows from that, counts only if no run has a recipe.
    """
    recipes = [run.recipe for run in runs]
    files = recipes if any(recipes) else [run.facts("config.json") for run in runs]
    return [
        name
        for name in dict.fromkeys(name for settings in files for name in settings)
        if name not in _NOT_COMPARED
        and not name.endswith("seed")
        and not name.startswith(_NOT_COMPARED_PREFIXES)
        and len({format_setting(name, run.settings.get(name)) for run in runs}) > 1
    ]


def group_runs(
    run_folders: Sequence[Path], group_by: Sequence[str] | None = None
) -> dict[str, list[Path]]:
    """Runs with equal settings as one group.

    `group_by` are the settings whose values make a group, keys of `recipe.yaml` or, where that has
    no such key, of `config.json`. None: all settings that differ between the runs, except seeds,
    folders, logging, saving and what only has to fit the memory.

    Returns:
        Label (`learning_rate 0.0002, group_size 8`; `base` if nothing differs) -> folders; numbers
        ascending, then words; a value that is missing or None last, as `all` for `num_examples`
        and `unset` for any other.

    Raises:
        FileNotFoundError: A folder has no `metrics.jsonl`.
        ValueError: No folder or no setting is given, a folder is given twice, or no run has a
            setting.
    """
    if not run_folders:
        raise ValueError("there are no run folders; give the output folders of runs")
    if group_by is not None and not group_by:
        raise ValueError("group_by is empty; give a setting that differs between the runs")
    resolved = [folder.resolve() for folder in run_folders]
    for number, folder in enumerate(run_folders):
        if resolved[number] in resolved[:number]:
            raise ValueError(f"{folder} is given twice; give each run once")
    runs = [LoggedRun(folder) for folder in run_folders]
    for setting in group_by or ():
        if not any(setting in run.settings for run in runs):
            raise ValueError(
                f"no run has the setting {setting!r} in its recipe.yaml or config.json; group by a "
                "key of these files"
            )
    settings = differing_settings(runs) if group_by is None else group_by
    groups: dict[str, list[Path]] = {}
    order: dict[str, list[tuple[int, float, str]]] = {}
    for run in runs:
        values = {setting: run.settings.get(setting) for setting in settings}
        words = [f"{name} {format_setting(name, value)}" for name, value in values.items()]
        label = ", ".join(words) or ONE_GROUP
        groups.setdefault(label, []).append(run.folder)
        order[label] = [_rank(name, value) for name, value in values.items()]
    return {label: groups[label] for label in sorted(groups, key=order.__getitem__)}


def format_setting(setting: str, value: Any) -> str:
    """A setting's value as recipes write it, on one line, without a path of this machine."""
    if value is None:
        return _NONE_NAMES.get(setting, "unset")
    if isinstance(value, str):
        return format_path(Path(value)) if os.path.isabs(value) else value
    return format_value(value)


def format_path(path: Path) -> str:
    """A path relative to the current folder if it is below it, else its name: a report is read
    elsewhere too, and says nothing about this machine."""
    resolved, here = path.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else resolved.name


def _rank(setting: str, value: Any) -> tuple[int, float, str]:
    """Sorts values: numbers ascending, then words, then None."""
    if value is None:
        return 2, 0.0, ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, format_setting(setting, value))
