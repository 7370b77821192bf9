"""Files that survive a kill, and what tells one piece of work from another."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

# File systems of clusters may come without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def json_text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is never seen half: the old one is there until the new one is whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content; it is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[bytes]) -> bool:
    """Lock a file for this process, and not its children, until it is closed; False if another
    process has locked it. On file systems without locks it is always True."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def whole_lines(file: IO[bytes]) -> list[bytes]:
    """The lines of a file that is open for appending; a last one that a kill cut off is removed."""
    file.seek(0)
    content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        file.truncate(complete)
    return content[:complete].splitlines()


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two nested dicts of JSON, by key: `a.b: 1 there, 2 here`."""
    old, new = _flat(there), _flat(here)
    return [
        f"{key}: {old.get(key, 'nothing')!r} there, {new.get(key, 'nothing')!r} here"
        for key in dict.fromkeys([*old, *new])
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def _flat(facts: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(facts, Mapping) or not facts:
        return {name: facts}
    return {
        key: value
        for own, inner in facts.items()
        for key, value in _flat(inner, f"{name}.{own}" if name else own).items()
    }
