"""Evaluations side by side: `trl-r1zero compare`.

    trl-r1zero compare runs/eval/*/* [--baseline FOLDER ...] [--judgments NAME] [--output FILE.md]

For each task a table of all folders that `trl-r1zero eval` wrote: the accuracy, or what a judge
said (`trl-r1zero judge`), with standard errors, and the difference to the baseline on the same
questions. The folder of a suite stands for those of its tasks; all suites have one table first.
"""

from collections.abc import Sequence
from pathlib import Path

from .errors import command_line, exit_on


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero compare") -> None:
    """Compare as a command line says (this process's by default), and print the tables."""
    parser = command_line(program, __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="what `trl-r1zero eval` wrote")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="what to compare with, one for each task [the first folder of the task]",
    )
    parser.add_argument(
        "--judgments", metavar="NAME", help="which judgments to take, where a folder has several"
    )
    parser.add_argument("--output", metavar="FILE.md", help="write the tables there too")
    args = parser.parse_args(argv)

    from trl_r1zero.evaluation.compare import compare_folders

    with exit_on(program, ValueError, OSError):
        text = compare_folders(args.folders, args.baseline, args.judgments)
        if args.output:
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).write_text(f"# Comparison\n\n{text}", encoding="utf-8")
    print(text)
