"""Says what would go wrong with a run, before a paid hour starts.

trl-r1zero doctor --config RECIPE [--accelerate_config FILE] [--num_processes N]
                  [--assume "2x80GB"] [--method METHOD] [--json] [--key value ...]

Looks at versions, devices, the model's config and tokenizer, the data, the reward on real rows,
memory and disk, in seconds: no weights are read, no server is started, no GPU is needed.
--assume answers for a machine that is not here (24GB, 2x80GB, cpu); --json prints the findings for
programs; further keys change the recipe, as they would for its script. METHOD is the script's name
(grpo, sft, expert_iteration, instruction_tuning, dpo), where the recipe's keys leave it open.

The exit status is 1 if something would fail, else 0; 2 for a command line or recipe that cannot be
read.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trl_r1zero.devices import MachineFacts, machine_facts
from trl_r1zero.devices.visible import VARIABLE
from trl_r1zero.doctor.findings import to_json, to_text, would_fail
from trl_r1zero.doctor.launch import read_launch
from trl_r1zero.doctor.versions import check_versions, needed_packages

_PROGRAM = "trl-r1zero doctor"


def main(argv: Sequence[str] | None = None) -> int:
    """Look at a run.

    Args:
        argv: The arguments; those of this process by default.

    Returns:
        The exit status: 0, 1 if the run would fail, 2 for what cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    own, recipe_arguments = _parse(arguments)
    try:
        launch = read_launch(own.accelerate_config, own.num_processes)
        assumed = None if own.assume is None else MachineFacts.assume(own.assume)
        # Those of the packages whose versions may be wrong come first, without an import.
        early = check_versions(_installed(needed := _minimum()), needed)
        if would_fail(early):
            return _report(early, own, {"recipe": own.config}, f"{own.config}")
        from trl_r1zero.doctor.examine import examine
        from trl_r1zero.doctor.run import Run, read_run_recipe

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method, recipe = read_run_recipe(recipe_arguments, own.method)
    except (ValueError, OSError) as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    run = Run(
        method=method,
        recipe=recipe,
        launch=launch,
        machine=assumed or machine_facts(),
        environment=os.environ,
        vllm=_installed(["vllm"])["vllm"],
    )
    needed = needed_packages(
        own_server=run.own_server,
        distributed_type=launch.distributed_type,
        attention=recipe.instances[-1].attn_implementation,
        optimizer=str(getattr(run.values["optim"], "value", run.values["optim"])),
    )
    findings = [
        *check_versions(_installed(needed), needed),
        *examine(run, listed=None if own.assume else os.environ.get(VARIABLE)),
    ]
    facts = {"recipe": own.config, "method": method, "machine": run.machine.in_words()}
    return _report(findings, own, facts, f"{own.config} ({method}) on {run.machine.in_words()}")


def _report(findings: Any, own: argparse.Namespace, facts: dict[str, Any], heading: str) -> int:
    if own.json:
        print(json.dumps(to_json(findings, **facts), indent=2))
    else:
        print(to_text(findings, heading))
    return int(would_fail(findings))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog=_PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--accelerate_config")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--assume")
    parser.add_argument("--method")
    parser.add_argument("--json", action="store_true")
    own, rest = parser.parse_known_args(arguments)
    if own.method is not None:
        from trl_r1zero.runs.kinds import METHODS

        if own.method not in METHODS:
            parser.error(f"--method: got {own.method!r}, expected one of {', '.join(METHODS)}")
    return own, ["--config", own.config, *rest]


def _minimum() -> dict[str, str]:
    return needed_packages(own_server=False, distributed_type="NO", attention=None, optimizer="")


def _installed(names: Any) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
