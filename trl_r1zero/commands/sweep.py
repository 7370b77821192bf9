"""Experiments from their files: `trl-r1zero sweep`.

    trl-r1zero sweep recipes/experiments/baseline.yaml [--scale qwen2.5-math-1.5b] [--dry-run]
    trl-r1zero sweep recipes/experiments/*.yaml --parallel 2
    trl-r1zero sweep recipes/experiments/*.yaml --scale qwen2.5-math-1.5b --devices 0,1 2,3

Runs what is missing, each run in processes of its own, and writes a report of each experiment.
Stopped and started again it goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import command_line

REPORTS_FOLDER = "reports"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero sweep") -> int:
    """Sweep as a command line says; the exit status is 0 if every run is finished, 1 if some failed
    or diverged, 130 if it was interrupted."""
    args = _parser(program).parse_args(argv)
    try:
        return _sweep(args)
    except (ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2


def _sweep(args: argparse.Namespace) -> int:
    from trl_r1zero.experiments.experiment import read_experiment
    from trl_r1zero.experiments.plan import make_plan, make_slots
    from trl_r1zero.experiments.sweep import Sweep
    from trl_r1zero.experiments.sweep_report import plan_text, report_plan
    from trl_r1zero.runs.index import run_state

    experiments = [read_experiment(file, args.scale) for file in args.files]
    paths: dict[str, Path] = {}
    for one in experiments:
        other = paths.setdefault(one.name, one.path)
        if other.resolve() != one.path.resolve():
            raise ValueError(
                f"{other} and {one.path} have one name, and so one folder for their reports; "
                "rename one, or run them with different --root"
            )
    plans = [make_plan(one, args.root, args.seeds) for one in experiments]
    slots = make_slots(args.devices, args.parallel, max(one.scale.gpus for one in experiments))
    sweep = Sweep(plans, slots, lambda text: print(text, flush=True))
    for plan in plans:
        print(plan_text(plan, slots))
    if args.dry_run:
        return 0
    interrupted = False
    try:
        sweep.run()
    except KeyboardInterrupt:
        interrupted = True
        print("Interrupted; the same command goes on.", flush=True)
    for plan in plans:
        print(report_plan(plan, plan.folder / REPORTS_FOLDER / plan.experiment.name))
    if interrupted:
        return 130
    return int(any(run_state(run.folder).status != "finished" for run in sweep.runs))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = command_line(program, __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="such as recipes/experiments/*")
    parser.add_argument("--scale", help="one of the file's scales [its first]")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("runs/experiments"),
        help="folder of all runs and reports [%(default)s]",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the file's")
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--devices",
        nargs="+",
        default=[],
        metavar="GPUS",
        help="run on these GPUs (counted within CUDA_VISIBLE_DEVICES), several runs at a time: "
        "0,1 2,3 is two runs on two GPUs each",
    )
    places.add_argument(
        "--parallel", type=_positive, default=1, metavar="N", help="so many runs at a time [1]"
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the plan and what it costs, and run nothing",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number
