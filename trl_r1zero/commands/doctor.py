"""Says what would go wrong with a run, before a paid hour starts.

trl-r1zero doctor --config RECIPE [--accelerate_config NAME|FILE] [--num_processes N]
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
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from typing import Any

from trl_r1zero.devices import MachineFacts, machine_facts
from trl_r1zero.devices.visible import VARIABLE
from trl_r1zero.doctor.findings import Finding, to_json, to_text, would_fail
from trl_r1zero.doctor.launch import check_versions, read_launch
from trl_r1zero.recipe.requirements import REQUIREMENTS

_PROGRAM = "trl-r1zero doctor"


def main(argv: Sequence[str] | None = None) -> int:
    """Examine a run; the exit status: 0, 1 if the run would fail, 2 for what cannot be read."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    own, recipe_arguments = _parse(arguments)
    try:
        launch = read_launch(own.accelerate_config, own.num_processes)
        assumed = None if own.assume is None else MachineFacts.assume(own.assume)
        # Before the packages whose versions may be wrong are imported.
        early = check_versions(_installed(REQUIREMENTS), REQUIREMENTS)
        if would_fail(early):
            return _report(early, own.json, own.config, recipe=own.config)
        from trl_r1zero.doctor.examine import examine
        from trl_r1zero.doctor.run import Run, read_run_recipe

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method, recipe = read_run_recipe(recipe_arguments, own.method)
    except (ValueError, OSError) as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    machine, vllm = assumed or machine_facts(), _installed(["vllm"])["vllm"]
    run = Run(method, recipe, launch, machine, os.environ, vllm)
    needed = run.needed_packages()
    listed = None if own.assume else os.environ.get(VARIABLE)
    findings = [*check_versions(_installed(needed), needed), *examine(run, listed)]
    words = machine.in_words()
    heading = f"{own.config} ({method}) on {words}"
    return _report(findings, own.json, heading, recipe=own.config, method=method, machine=words)


def _report(findings: Sequence[Finding], as_json: bool, heading: str, **facts: Any) -> int:
    text = to_text(findings, heading)
    print(json.dumps(to_json(findings, **facts), indent=2) if as_json else text)
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
        from .launch import DESCRIPTIONS

        if own.method not in DESCRIPTIONS:
            names = ", ".join(DESCRIPTIONS)
            parser.error(f"--method: got {own.method!r}, expected one of {names}")
    return own, ["--config", own.config, *rest]


def _installed(names: Iterable[str]) -> dict[str, str | None]:
    return {name: next((d.version for d in distributions(name=name)), None) for name in names}
