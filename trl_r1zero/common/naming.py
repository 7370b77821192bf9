"""Names of tasks, rewards, losses: what they stand for, and one wording for unknown ones."""

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any


def did_you_mean(got: object, allowed: Iterable[str]) -> str:
    """Returns `; did you mean 'math'?`, or nothing where no allowed name is near."""
    nearest = get_close_matches(str(got), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def unknown_name_message(kind: str, got: object, allowed: Iterable[str]) -> str:
    """Returns e.g. `unknown task 'mat'; did you mean 'math'? Allowed: countdown, gsm8k, math.`"""
    names = sorted(allowed)
    suggestion = did_you_mean(got, names) or ";"
    return f"unknown {kind} {got!r}{suggestion} Allowed: {', '.join(names) or '(none)'}."


def resolve(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """What `known` has under a name, or what stands at a dotted path, `package.module.name`. A
    ValueError if there is no such name, module, or name in the module."""
    if name in known:
        return known[name]
    module_name, dot, attribute = name.rpartition(".")
    if not dot or name.startswith("."):
        message = unknown_name_message(kind, name, known)
        raise ValueError(f"{message} Or give a dotted path, package.module.name.")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{kind}: got {name!r}, but {error}; a dotted path is package.module.name, and its "
            "package must be installed or on PYTHONPATH"
        ) from error
    if attribute not in vars(module):
        hint = did_you_mean(attribute, [key for key in vars(module) if not key.startswith("_")])
        raise ValueError(f"{kind}: module {module_name!r} has no name {attribute!r}{hint}")
    return vars(module)[attribute]


def search_here() -> None:
    """Let dotted paths name modules of the current directory too, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))
