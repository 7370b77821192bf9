"""Training runs as people start them: `accelerate launch recipes/grpo.py --config ...`."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from tiny_models import REPOSITORY


def launch(
    recipe: dict,
    output_dir: Path,
    model: Path,
    *arguments: str,
    processes: int = 1,
    accelerate_config: Path = REPOSITORY / "accelerate_configs" / "cpu.yaml",
    timeout_seconds: float = 300,
) -> subprocess.CompletedProcess:
    """Run `recipes/grpo.py` on a recipe, written beside the output folder."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    path = output_dir.with_suffix(".yaml")
    path.write_text(
        yaml.safe_dump({**recipe, "model_name_or_path": str(model), "output_dir": str(output_dir)})
    )
    paths = [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(accelerate_config),
            "--num_processes",
            str(processes),
            str(REPOSITORY / "recipes" / "grpo.py"),
            "--config",
            str(path),
            *arguments,
        ],
        cwd=output_dir.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
