"""What a run starts with: the launcher's settings, and the packages that it needs.

Nothing is imported here that may be missing, or may be there in a wrong version.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from packaging.specifiers import SpecifierSet

from trl_r1zero.devices.training_setup import sharding_of
from trl_r1zero.recipe.bundled import LAUNCH_CONFIGS, find_launch_config, not_found

from .findings import Finding, ok, problem

_COMMANDS = {
    "vllm": 'with a GPU: pip install -c constraints.txt -e ".[vllm]"; without: make vllm',
    "deepspeed": 'python -m pip install -c constraints.txt -e ".[deepspeed]"',
    "kernels": 'python -m pip install -c constraints.txt -e ".[kernels]"',
    "bitsandbytes": "python -m pip install bitsandbytes",
    "torchao": "python -m pip install torchao",
}


@dataclass(frozen=True)
class Launch:
    """The settings in a file of accelerate_configs; without one, a plain `python`."""

    path: str | None = None
    num_processes: int = 1  # over all machines
    num_machines: int = 1
    distributed_type: str = "NO"
    zero_stage: int | None = None
    use_cpu: bool = False
    gpu_ids: str | None = None  # the devices that the launcher shows; None: all

    @property
    def processes_here(self) -> int:
        """Of one machine."""
        return max(1, self.num_processes // self.num_machines)

    @property
    def sharding(self) -> str:
        """As `TrainingSetup` calls it."""
        return sharding_of(self.distributed_type, self.zero_stage)


def read_launch(path: str | None, num_processes: int | None) -> Launch:
    """The launch with this file and `--num_processes`; a ValueError for no file of accelerate's."""
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes is {num_processes}; give 1 or more")
    if path is None:
        number = num_processes or 1
        return Launch(num_processes=number, distributed_type="MULTI_GPU" if number > 1 else "NO")
    found = find_launch_config(path)
    try:
        content = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        advice = not_found(path, LAUNCH_CONFIGS) if isinstance(error, FileNotFoundError) else ""
        raise ValueError(f"--accelerate_config {path}: {error}{advice}") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ValueError(
            f"--accelerate_config {path}: there is no distributed_type in it; give a file as in "
            "accelerate_configs/"
        )
    for name in ("num_processes", "num_machines"):
        if not isinstance(content.get(name, 1), int):
            raise ValueError(
                f"--accelerate_config {path}: {name} must be a whole number, got {content[name]!r}"
            )
    gpu_ids, deepspeed = content.get("gpu_ids"), content.get("deepspeed_config")
    return Launch(
        path=str(found),
        num_processes=num_processes or content.get("num_processes") or 1,
        num_machines=content.get("num_machines") or 1,
        distributed_type=str(content["distributed_type"]),
        zero_stage=deepspeed.get("zero_stage") if isinstance(deepspeed, dict) else None,
        use_cpu=bool(content.get("use_cpu")),
        gpu_ids=None if gpu_ids in (None, "all") else str(gpu_ids),
    )


def check_versions(installed: Mapping[str, str | None], needed: Mapping[str, str]) -> list[Finding]:
    """Compare the versions that are installed, None where a package is not, with those that fit."""
    right, wrong = [], []
    for name, versions in needed.items():
        found = installed.get(name)
        if found is not None and SpecifierSet(versions).contains(found, prereleases=True):
            right.append(f"{name} {found}")
            continue
        state = "is not installed" if found is None else f"{found} is installed"
        command = f'python -m pip install -c constraints.txt "{name}{versions}"'
        needs, advice = f"{name} {versions}".strip(), _COMMANDS.get(name, command)
        wrong.append(problem(f"versions/{name}", f"{name} {state}", needs, advice))
    return [ok("versions/installed", ", ".join(right))] * bool(right) + wrong
