"""Responses of a file, graded: `trl-r1zero grade`.

    trl-r1zero grade FILE.jsonl [--reward NAME] [--output_dir DIR]

Each line of the file has a `response` and its `ground_truth`; anything may have written them. Of
each row, `grades.jsonl` says in the field `grade` its reward, what was graded as its answer and the
rule that decided; `report.md` and `report.html` sum it up. Of answers that a strict reward calls
wrong, they say what the lenient one would say.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .errors import command_line, exit_on

DEFAULT_REWARD = "math"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero grade") -> None:
    """Grade as a command line says (this process's by default), and print the results."""
    parser = command_line(program, __doc__)
    parser.add_argument(
        "file", metavar="FILE.jsonl", help="one JSON object per line: response, ground_truth"
    )
    parser.add_argument(
        "--reward",
        default=DEFAULT_REWARD,
        metavar="NAME",
        help="r1_zero, question_only, math, mmlu, gsm8k, or package.module.function "
        f"[{DEFAULT_REWARD}]",
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", help="where to write [beside the file: FILE-REWARD]"
    )
    parser.add_argument(
        "--on_bad_row",
        choices=("error", "skip"),
        default="error",
        help="what to do with rows that cannot be graded [error]",
    )
    parser.add_argument(
        "--reward_workers",
        type=int,
        metavar="N",
        help="processes that grade [2 for functions named by a dotted path, else 0: this one]",
    )
    args = parser.parse_args(argv)

    from trl_r1zero.evaluation.graded_file import grade_file

    file = Path(args.file)
    name = f"{file.name.removesuffix('.gz').removesuffix('.jsonl')}-{args.reward}"
    folder = Path(args.output_dir) if args.output_dir else file.parent / name
    with exit_on(program, ValueError, OSError):
        grade = partial(grade_file, reward_workers=args.reward_workers)
        table = grade(file, args.reward, folder, on_bad_row=args.on_bad_row)
    print(f"{table}\n\nWritten to {folder}: grades.jsonl, report.md, report.html")
