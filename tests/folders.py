"""A folder that another process has for itself."""

import subprocess
import sys
from pathlib import Path

_HOLDS = (
    "import sys; from trl_r1zero.common.folder_lock import folder_ends, holding\n"
    "with holding(sys.argv[1]):\n"
    "    if sys.argv[2:]: folder_ends(sys.argv[1])\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def holds(folder: str | Path, *ends: str) -> subprocess.Popen:
    """A process that keeps a folder until its input ends; with `ends`, it says that it will."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", _HOLDS, str(folder), *ends], **pipes)
    assert process.stdout.readline() == b"held\n"
    return process
