"""What a run depended on besides its settings: versions, commit, command, hardware."""

import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("trl-r1zero", "torch", "trl", "transformers", "accelerate"),
    *("datasets", "peft", "vllm", "deepspeed"),
)


def environment(num_processes: int = 1) -> dict[str, Any]:
    """Versions, commit, command and hardware of this process; `num_processes`: of the run."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "num_processes": num_processes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of those that decide what it computes."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, `+` behind it if it is changed."""
    package = Path(__file__).resolve().parents[1]

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # there is no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in another checkout: its own files must be tracked there.
    if not git("ls-files", "."):
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", ".") else commit
