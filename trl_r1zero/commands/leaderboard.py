"""Submissions to the leaderboard: `trl-r1zero leaderboard`.

    trl-r1zero leaderboard verify FOLDER ...     # from the files alone; exit status 1 if a rule is broken
    trl-r1zero leaderboard table [--folder leaderboard]

A submission is made by `accelerate launch leaderboard/run.py --config ...`.
"""  # noqa: E501

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import command_line

PAGE = "README.md"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero leaderboard") -> int:
    """Verify submissions or write the page of the leaderboard, as a command line says; the exit
    status is 1 where a submission breaks a rule or cannot be read."""
    parser = command_line(program, __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verifying = commands.add_parser(
        "verify", help="check submissions by the rules, without model, data or network"
    )
    verifying.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="what a run left in OUTPUT_DIR/submission"
    )
    listing = commands.add_parser("table", help=f"write {PAGE} from rules and submissions")
    listing.add_argument(
        "--folder",
        default="leaderboard",
        metavar="FOLDER",
        help="of the page and of submissions/BOARD/NAME [leaderboard]",
    )
    args = parser.parse_args(argv)
    try:
        if args.command == "verify":
            return _verify(args.folders)
        return _write_page(Path(args.folder))
    except (ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1


def _verify(folders: Sequence[str]) -> int:
    from trl_r1zero.leaderboard.submission import compare_submissions, judge

    submissions = {}
    for folder in folders:
        about, broken, text = judge(folder)
        print(f"{text}\n")
        if not broken:
            submissions[folder] = about
    differences = compare_submissions(submissions)
    for difference in differences:
        print(f"Not comparable: {difference}")
    return int(len(submissions) < len(set(folders)) or bool(differences))


def _write_page(folder: Path) -> int:
    from trl_r1zero.leaderboard.submission import leaderboard_page, read_submissions

    submissions = read_submissions(folder)
    path = folder / PAGE
    path.write_text(leaderboard_page(submissions), encoding="utf-8")
    valid = sum(not entry.broken for entry in submissions)
    print(f"{path}: submissions: {len(submissions)}, of which {valid} hold every rule")
    return 0
