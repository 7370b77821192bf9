"""One process at a time works in a folder: `run.lock` in it says which.

The kernel keeps the lock, so a process that is dead, however it ended, holds none; its children
hold none either. On file systems without locks the owner that the file names counts, while it
lives.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

LOCK_FILE = "run.lock"
# What a new process waits for one that is ending, and for one to notice that it has to.
_END_SECONDS, _NOTICE_SECONDS, _POLL_SECONDS = 600.0, 2.0, 0.1
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class FolderInUseError(ValueError):
    """Another process works in the folder; `who`, in words."""

    def __init__(self, message: str, who: str) -> None:
        super().__init__(message)
        self.who = who


@dataclass
class _Held:
    file: IO[bytes]
    facts: dict[str, Any]
    made: bool  # the folder
    count: int = 1


_held: dict[Path, _Held] = {}  # by this process


@contextmanager
def holding(folder: str | Path) -> Iterator[None]:
    """Keep a folder, which is made if need be, for this process; it can be taken several times. One
    that was made and got nothing is taken away again. FolderInUseError if another process has it,
    and is not about to end."""
    path = Path(folder).resolve()
    if path in _held:
        _held[path].count += 1
    else:
        _held[path] = _take(path)
    try:
        yield
    finally:
        held = _held[path]
        held.count -= 1
        if not held.count:
            del _held[path]
            (path / LOCK_FILE).unlink(missing_ok=True)
            held.file.close()
            if held.made:
                with suppress(OSError):  # there is something in it
                    path.rmdir()


def folder_ends(folder: str | Path) -> None:
    """Say in the lock that this process is about to end: who wants the folder next waits for it."""
    held = _held.get(Path(folder).resolve())
    if held is not None:
        held.facts["ending"] = True
        _write(held)


def in_use(folder: str | Path) -> bool:
    """Whether a process works in a folder; one on another host, which cannot be seen, counts."""
    try:
        with Path(folder, LOCK_FILE).open("rb") as file:
            return _lives(_owner(file))
    except FileNotFoundError:
        return False


def _take(folder: Path) -> _Held:
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    file = path.open("a+b")
    began, said = time.monotonic(), False
    try:
        while not (_locked(file) and _is_at(file, path)):
            if not _is_at(file, path):  # its owner has removed it
                file.close()
                file = path.open("a+b")
                continue
            owner, waited = _owner(file), time.monotonic() - began
            if waited > (_END_SECONDS if owner.get("ending") else _NOTICE_SECONDS):
                raise _in_use(folder, owner)
            if owner.get("ending") and not said:
                said = True
                print(f"{folder}: waiting for process {owner.get('pid')} to end", file=sys.stderr)
            time.sleep(_POLL_SECONDS)
        facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process_started": psutil.Process().create_time(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        held = _Held(file, facts, made)
        _write(held)
    except BaseException:
        file.close()
        raise
    return held


def _locked(file: IO[bytes]) -> bool:
    try:
        # Not flock: that one's locks live on in children.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        return not _lives(_owner(file))
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write(held: _Held) -> None:
    held.file.truncate(0)
    held.file.write(json.dumps(held.facts).encode() + b"\n")
    held.file.flush()


def _owner(file: IO[bytes]) -> dict[str, Any]:
    """What the file says; nothing where it is being written, or says nothing of use."""
    file.seek(0)
    try:
        facts = json.loads(file.read())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process that runs; one of another host cannot be seen, and counts."""
    if not owner or owner.get("host") != socket.gethostname():
        return bool(owner)
    try:
        return bool(psutil.Process(owner.get("pid")).create_time() == owner.get("process_started"))
    except (psutil.Error, TypeError, ValueError):
        return False


def _in_use(folder: Path, owner: dict[str, Any]) -> FolderInUseError:
    who = "another process"
    if owner:
        who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')},"
    return FolderInUseError(
        f"{who} is working in {folder}; wait for its end, end it, or choose another folder (if it "
        f"is gone and the file system has no locks, delete {folder / LOCK_FILE})",
        who,
    )
