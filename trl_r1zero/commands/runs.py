"""What runs there are, and how far they are: `trl-r1zero runs`.

    trl-r1zero runs [FOLDER] [--json]

A run counts as running while its metrics are younger than five times its longest gap between lines
(a minute at least).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from .errors import command_line, exit_on


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero runs") -> None:
    """List the runs in a folder, the latest first."""
    parser = command_line(program, __doc__)
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="[%(default)s]")
    parser.add_argument(
        "--json", action="store_true", help="a list for programs; seconds and bytes in numbers"
    )
    args = parser.parse_args(argv)

    from trl_r1zero.runs.index import find_runs, index_run

    with exit_on(program, OSError):
        runs = sorted(map(index_run, find_runs(args.folder)), key=lambda run: run.age_seconds)
    if args.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
        return
    print(_table(runs) if runs else f"{args.folder}: there are no runs in it")


def _table(runs: Sequence) -> str:
    from trl_r1zero.evaluation.markdown import printable, table
    from trl_r1zero.runs.index import duration

    rows = []
    for run in runs:
        best = _number(run.best) + (f" at {run.best_step}" if run.best_step is not None else "")
        is_loss = " (loss)" if run.metric == "eval_loss" else ""
        left = f", {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
        steps = "-" if run.step is None else f"{run.step}/{run.planned_steps or '?'}{left}"
        age, size = duration(run.age_seconds), _size(run.size_bytes)
        last = _number(run.last) + is_loss
        rows.append([run.folder, run.kind or "-", run.state, steps, last, best, age, size])
    lines = table(["run", "kind", "state", "steps", "last", "best", "age", "size"], rows)
    reasons = [f"{run.folder}: {run.reason}" for run in runs if run.reason]
    return printable("\n".join([*lines, *([""] if reasons else []), *reasons]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size(number: int) -> str:
    if number < 10**9:
        return f"{number / 10**3:.0f} kB" if number < 10**6 else f"{number / 10**6:.0f} MB"
    return f"{number / 10**9:.1f} GB"
