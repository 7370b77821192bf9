"""Training runs as people start them: `accelerate launch recipes/SCRIPT --config ...`."""

import contextlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml
from tiny_models import REPOSITORY

CPU = REPOSITORY / "accelerate_configs" / "cpu.yaml"


def launch(
    recipe: dict,
    output_dir: Path,
    model: Path,
    *arguments: str,
    processes: int = 1,
    script: str = "grpo.py",
    accelerate_config: Path = CPU,
    timeout_seconds: float = 300,
) -> subprocess.CompletedProcess:
    """Run a script of recipes/ on a recipe, written beside the output folder."""
    return subprocess.run(
        **command(recipe, output_dir, model, arguments, processes, script, accelerate_config),
        capture_output=True,
        timeout=timeout_seconds,
        check=False,
    )


def start(
    recipe: dict,
    output_dir: Path,
    model: Path,
    *arguments: str,
    script: str,
    output: Any = subprocess.DEVNULL,
    environment: dict[str, str] | None = None,
    launched: bool = True,
) -> subprocess.Popen:
    """`launch` with one process, not waited for; what it says goes to `output`. Or without the
    launcher: `python recipes/SCRIPT --config ...`."""
    started = command(recipe, output_dir, model, arguments, 1, script, CPU)
    started["env"] |= environment or {}
    if not launched:
        del started["args"][1 : started["args"].index(str(REPOSITORY / "recipes" / script))]
    return subprocess.Popen(
        **started,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    """kill -9 for what `start` started, and for all that this started, in whatever session."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                one.kill()
        process.wait()


def run_here(
    recipe: dict, output_dir: Path, model: Path, *arguments: str, script: str = "grpo.py"
) -> None:
    """The script in this process, which saves the seconds that a launcher takes to start."""
    words = command(recipe, output_dir, model, arguments, 1, script, CPU)["args"]
    path = str(REPOSITORY / "recipes" / script)
    before = sys.argv
    sys.argv = words[words.index(path) :]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before


def command(
    recipe: dict,
    output_dir: Path,
    model: Path,
    arguments: tuple[str, ...],
    processes: int,
    script: str,
    accelerate_config: Path,
) -> dict[str, Any]:
    """The arguments of `subprocess` that launch a recipe, which is written beside the folder."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    path = output_dir.with_suffix(".yaml")
    path.write_text(
        yaml.safe_dump({**recipe, "model_name_or_path": str(model), "output_dir": str(output_dir)})
    )
    paths = [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        "args": [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(accelerate_config),
            "--num_processes",
            str(processes),
            str(REPOSITORY / "recipes" / script),
            "--config",
            str(path),
            *arguments,
        ],
        "cwd": output_dir.parent,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        "text": True,
    }
