"""A run of a recipe, from the first thing that it does in its folder to how it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trl_r1zero.common.types import to_plain
from trl_r1zero.data.bad_rows import BadRowsError
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.recipe import ParsedRecipe
from trl_r1zero.recipe.yaml_files import read_recipe
from trl_r1zero.trainers.guarded import DivergedError
from trl_r1zero.trainers.one_device import check_device
from trl_r1zero.trainers.run_folder import RunFolder

# What making a trainer raises for settings and files that do not fit.
WRONG_SETTINGS = (ValueError, OSError, SafetensorError, VLLMServerError)


def training_errors() -> tuple[type[Exception], ...]:
    """What training raises for what is not this package's fault: rows, numbers, disks, servers."""
    wandb = sys.modules.get("wandb.errors")  # there once a trainer has been made that reports to it
    own = (BadRowsError, DivergedError, VLLMServerError, OSError)
    return own if wandb is None else (*own, wandb.Error)


@contextmanager
def started_run(recipe: ParsedRecipe) -> Iterator[str | None]:
    """The folder of a recipe's run, which is this run's alone; yields what the trainer's `train` is
    to resume from. A collective call.

    Raises:
        ValueError: The folder is in use, holds a run already or one with other settings, or there
            is no such checkpoint.
        UnusableGPUError: There is a GPU that torch cannot use, and `use_cpu` is false.
    """
    config = recipe.instances[0]
    check_device(config)
    folder, file = RunFolder(config.output_dir), Path(config.output_dir, "recipe.yaml")
    with folder.held():
        checkpoint = folder.checkpoint(config.resume_from_checkpoint)

        def there() -> dict[str, Any]:
            return {one.key: one.value for one in read_recipe(file)} if file.is_file() else {}

        folder.go_on_with(checkpoint, there, {k: to_plain(v) for k, v in recipe.values.items()})
        yield checkpoint or config.resume_from_checkpoint
