"""What came of runs: `trl-r1zero report`.

    trl-r1zero report RUN
    trl-r1zero report RUN RUN ... [--group_by KEY ...] [--baseline LABEL] [--output_dir DIR]

Of one run: `report.md` and `curve.png` in its folder, and the report printed. Of several: groups of
seeds side by side, as `report.md`, `report.html`, figures and `results.json` in a folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .errors import command_line, exit_on

DEFAULT_OUTPUT_DIR = "report"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero report") -> None:
    """Report as a command line says, and print it."""
    parser = command_line(program, __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--group_by",
        nargs="+",
        metavar="KEY",
        help="several: settings whose values make a group, e.g. num_examples [all that differ, "
        "except seeds, folders, logging and saving]",
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="several: the group to compare with [the first]"
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", help=f"several: where to write [{DEFAULT_OUTPUT_DIR}]"
    )
    args = parser.parse_args(argv)
    with exit_on(program, ValueError, OSError):
        print(_compare(args) if len(args.runs) > 1 else _report(args), end="")


def _report(args: argparse.Namespace) -> str:
    from trl_r1zero.reports.report import write_report

    only_for_several = ("group_by", "baseline", "output_dir")
    if given := [f"--{name}" for name in only_for_several if getattr(args, name) is not None]:
        raise ValueError(
            f"{', '.join(given)}: only for several runs; the report of one goes into its folder"
        )
    return write_report(args.runs[0])


def _compare(args: argparse.Namespace) -> str:
    from trl_r1zero.reports.comparison import write_comparison
    from trl_r1zero.reports.grouping import group_runs

    groups = group_runs([Path(run) for run in args.runs], args.group_by)
    folder = Path(args.output_dir or DEFAULT_OUTPUT_DIR)
    number = f"{len(args.runs)} runs"
    title = f"{number} in {len(groups)} groups" if len(groups) > 1 else number
    text = write_comparison(groups, folder, title=title, baseline=args.baseline)
    return f"{text}\nWritten to {folder}: report.md, report.html, figures, results.json\n"
