"""Files that survive a kill, and what tells one piece of work from another."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def json_text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def valid_json(value: Any) -> Any:
    """The same, with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: valid_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON, which is the file's last one though the line before was cut off."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                whole_lines(file)
        file.write(json_line(row))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is never seen half: the old one is there until the new one is whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; a ValueError that names the file and the line if it is none."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(
            f"{path}{line}: got text that is not JSON ({error}); restore the file, or remove it"
        ) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content; it is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
