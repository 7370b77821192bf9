"""A page to watch runs on: `trl-r1zero watch`.

    trl-r1zero watch RUN [RUN ...] [--port 8700]
    trl-r1zero watch RUN --write

Several runs are overlaid. The page is served to this machine alone and follows what the runs write.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import command_line

PROGRAM = "trl-r1zero watch"
DEFAULT_PORT = 8700


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C, or write it."""
    parser = command_line(PROGRAM, __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"0: any free one [{DEFAULT_PORT}]"
    )
    parser.add_argument(
        "--write", action="store_true", help="write index.html into each folder instead"
    )
    args = parser.parse_args(argv)
    folders = [Path(run) for run in args.runs]
    try:
        return _write(folders) if args.write else _serve(folders, args.port)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2


def _write(folders: Sequence[Path]) -> int:
    from trl_r1zero.watch import write_page

    for folder in folders:
        print(write_page(folder))
    return 0


def _serve(folders: Sequence[Path], port: int) -> int:
    from trl_r1zero.watch.server import HOST, PageServer

    if not 0 <= port < 2**16:
        raise ValueError(f"port: got {port}, expected 0 (any free one) to 65535")
    try:
        server = PageServer(folders, port)
    except OSError as error:
        raise OSError(
            f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --port, or 0 for any"
        ) from None
    with server:
        server.runs()  # whatever is wrong with a folder is said now
        print(f"{server.url} (this machine alone; Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
