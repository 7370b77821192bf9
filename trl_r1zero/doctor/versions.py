"""Whether what a run builds on is installed, in versions that it works with."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from trl_r1zero.recipe.requirements import REQUIREMENTS, VLLM_REQUIREMENT

from .findings import Finding, ok, problem

if TYPE_CHECKING:
    from .run import Run

_COMMANDS = {
    "vllm": 'with a GPU: pip install -c constraints.txt -e ".[vllm]"; without: make vllm',
    "deepspeed": 'python -m pip install -c constraints.txt -e ".[deepspeed]"',
    "kernels": 'python -m pip install -c constraints.txt -e ".[kernels]"',
    "bitsandbytes": "python -m pip install bitsandbytes",
    "torchao": "python -m pip install torchao",
}


def needed_packages(run: "Run") -> dict[str, str]:
    """Package -> versions that fit, for a run."""
    needed = dict(REQUIREMENTS)
    if run.own_server:
        needed["vllm"] = VLLM_REQUIREMENT
    if run.launch.distributed_type == "DEEPSPEED":
        needed["deepspeed"] = ""
    attention = run.model_args.attn_implementation or ""
    if "/" in attention or attention.startswith("flash_attention"):
        needed["kernels"] = ""
    if run.optimizer in ("adamw_torch_8bit", "adamw_torch_4bit"):
        needed["torchao"] = ">=0.4"
    elif any(word in run.optimizer for word in ("8bit", "bnb", "paged", "lion", "ademamix")):
        needed["bitsandbytes"] = ""
    return needed


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
        advice = _COMMANDS.get(name, command)
        wanted = f"{name} {versions}".strip()
        wrong.append(problem(f"versions/{name}", f"{name} {state}", wanted, advice))
    return [ok("versions/installed", ", ".join(right))] * bool(right) + wrong
